"""What constructors and files refuse arrives as a fault of its key, as what `check` finds does."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from multimodal.config import ConfigError, check, config_dir
from multimodal.config.instantiating import constructor_errors, instantiate
from multimodal.training.build import build_data, build_module, build_trainer

SAMPLES = Path(__file__).parents[3] / "multimodal" / "data" / "samples"
IMAGE, EMOJI = "model.towers.image.encoder", "data.sources.emoji"
IMU = "model.towers.imu.encoder"


def composed(words):
    chosen = (
        []
        if any(word.startswith("+experiment") for word in words)
        else ["+experiment=clip_scratch"]
    )
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", [*chosen, "trainer=cpu", *words])
    with open_dict(cfg):
        cfg.logger = None
    return cfg


def build(cfg, words, folder):
    check(cfg)
    part = re.split("[.=]", words[-1].lstrip("+"))[0]
    if part not in ("data", "trainer", "callbacks"):
        build_module(cfg)
        return
    trainer = build_trainer(cfg, folder, "")
    if part == "data":
        with constructor_errors(cfg.data):
            build_data(cfg).check_batches(trainer.world_size)


def refused(words, folder):
    """Key -> problem."""
    cfg = composed(words)
    with pytest.raises(ConfigError) as error:
        build(cfg, words, folder)
    return {problem.where: problem.message for problem in error.value.problems}


# Words of the command line, the key that is to blame, and what the message has to say of it.
CASES = [
    ("optimizer.lr=-1", "optimizer.lr", "-1"),
    ("optimizer.lr=-1", "optimizer.lr", "expected a number from 0"),
    ("optimizer.lr=nan", "optimizer.lr", "nan; expected a number from 0"),
    ("optimizer.betas=[2,3]", "optimizer.betas[0]", "2.*expected a number from 0 to below 1"),
    ("optimizer.weight_decay=-1", "optimizer.weight_decay", "-1"),
    ("seed=-1", "seed", "given -1, expected a number from 0"),
    ("embed_dim=0", "embed_dim", "given 0, expected at least 1"),
    ("micro_batch_size=0", "micro_batch_size", "given 0, expected at least 1"),
    ("data.batch_size=0", "data.batch_size", "given 0, expected at least 1"),
    ("data.batch_size=100000", "data.batch_size", "1195 samples, fewer than .* 100000"),
    (f"{EMOJI}.batch_size=9999", f"{EMOJI}.batch_size", "1195 samples, fewer than .* 9999"),
    ("data.num_workers=-1", "data.num_workers", "given -1, expected at least 0"),
    ("data.max_bad_fraction=nan", "data.max_bad_fraction", "given nan, expected a number from 0"),
    (f"{EMOJI}.repeat=0", f"{EMOJI}.repeat", "given 0, expected a number above 0"),
    (f"{EMOJI}.manifest=/no/emoji.json", f"{EMOJI}.manifest", "no manifest /no/emoji.json"),
    (f"{EMOJI}.manifest=samples://emojy.json", f"{EMOJI}.manifest", "mean 'samples://emoji.json'"),
    (f"{EMOJI}.manifest={SAMPLES}/emojy.json", f"{EMOJI}.manifest", f"mean '{SAMPLES}/emoji.json'"),
    (f"{EMOJI}.manifest={SAMPLES}", f"{EMOJI}.manifest", "no manifest"),
    (f"{EMOJI}.manifest={__file__}", f"{EMOJI}.manifest", "not JSON"),
    (f"{EMOJI}.manifest=http://127.0.0.1:9/x.json", f"{EMOJI}.manifest", "127.0.0.1:9"),
    (f"{EMOJI}.split=trian", f"{EMOJI}.split", "did you mean 'train'"),
    (f"{EMOJI}.positive_key=nope", f"{EMOJI}.positive_key", "no key 'nope'; there are: captions"),
    (
        f"{EMOJI}.modalities.image.member=fluent.web",
        f"{EMOJI}.modalities.image.member",
        "did you mean 'fluent.webp'",
    ),
    ("data.transforms.image.size=0", "data.transforms.image.size", "given 0, expected at least 1"),
    ("data.transforms.image.scale=[2,1]", "data.transforms.image.scale", r"\[2, 1\]"),
    (
        "data.transforms.image.interpolation=bicubc",
        "data.transforms.image.interpolation",
        "did you mean 'bicubic'",
    ),
    ("data.transforms.text.tokenizer=/x.json", "data.transforms.text.tokenizer", "/x.json"),
    (f"{IMAGE}.groups=7", f"{IMAGE}.groups", "groups=7 does not divide"),
    (f"{IMAGE}.channels=[1,2]", f"{IMAGE}.channels", r"\[1, 2\]"),
    (
        f"+experiment=imagebind_scratch {IMU}.trunk.num_heads=0",
        f"{IMU}.trunk.num_heads",
        "at least 1",
    ),
    (
        f"+experiment=imagebind_scratch {IMU}.trunk.drop_path=1",
        f"{IMU}.trunk.drop_path",
        r"in \[0, 1\)",
    ),
    (f"+experiment=imagebind_scratch {IMU}.pooling=maen", f"{IMU}.pooling", "did you mean 'mean'"),
    ("+experiment=fusion fusion.num_layers=0", "fusion.num_layers", "at least 1"),
    ("pairs.image_text.weight=-1", "pairs.image_text.weight", "given -1"),
    ("pairs.image_text.logit_scale.init=0", "pairs.image_text.logit_scale.init", "given 0"),
    ("loss=triplet loss.margin=-1", "loss.margin", "given -1"),
    ("loss=hinge loss.margin=-1", "loss.margin", "given -1"),
    ("loss.label_smoothing=3", "loss.label_smoothing", "given 3"),
    ("negatives=hard negatives.k=0", "negatives.k", "given 0"),
    ("trainer.precision=banana", "trainer.precision", "given 'banana', expected one of"),
    ("trainer.accelerator=gpu", "trainer.accelerator", "gpu"),
    ("trainer.devices=-4", "trainer.devices", "given -4.* int > 0"),
    ("trainer.strategy=nope", "trainer.strategy", "nope"),
    ("trainer.limit_val_batches=1.5", "trainer.limit_val_batches", "1.5"),
    ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches", "at least 1"),
    ("callbacks.stop.grace_s=-1", "callbacks.stop.grace_s", "must be above 0"),
]


@pytest.mark.parametrize(("words", "where", "problem"), CASES, ids=[case[0] for case in CASES])
def test_a_refused_value_is_a_fault_of_its_key(words, where, problem, tmp_path):
    problems = refused(words.split(" "), tmp_path)
    assert where in problems, problems
    assert re.search(problem, problems[where]), problems[where]


@pytest.mark.parametrize("plain", [False, True])
def test_the_key_of_a_block_inside_others(plain):
    """Of a configuration it is the whole path, of plain values the path below what was given."""
    cfg = OmegaConf.create(
        {"a": {"b": [{"optimizer": {"_target_": "torch.optim.SGD", "params": [], "lr": -1}}]}}
    )
    given = OmegaConf.to_container(cfg.a) if plain else cfg.a
    with pytest.raises(ConfigError) as error:
        instantiate(given, where="here" if plain else None)
    (problem,) = error.value.problems
    assert problem.where == ("here.b[0].optimizer.lr" if plain else "a.b[0].optimizer.lr")
    assert isinstance(error.value.__cause__.__cause__, ValueError)  # for HYDRA_FULL_ERROR=1


def test_what_is_partial_names_the_key_when_it_is_called():
    cfg = OmegaConf.create({"opt": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": -2}})
    make = instantiate(cfg.opt)
    with pytest.raises(ConfigError) as error:
        make([])
    assert [problem.where for problem in error.value.problems] == ["opt.lr"]
