"""`check` on a small configuration that is right, and on every way of making it wrong."""

import copy
import enum
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from omegaconf import OmegaConf

from multimodal.config import ConfigError, check, defaults_bound
from multimodal.config.annotations import describe, mismatches
from multimodal.config.targets.signatures import TargetError, resolve

GOOD = """
name: good
seed: 0
embed_dim: 8
micro_batch_size: null
resume: null
resume_allow: []
sweep_metric: null
cache_frozen: {views: null, folder: outputs/frozen}
anchor: null
debug: null
allowed_packages: []
model:
  _target_: multimodal.models.EmbeddingModel
  towers:
    image: &tower
      _target_: multimodal.models.Tower
      frozen: false
      encoder:
        _target_: multimodal.models.FeatureEncoder
        in_features: 4
        width: null
        hidden: null
        norm: false
      head:
        _target_: multimodal.models.LinearHead
        _partial_: true
        embed_dim: ${embed_dim}
    text: *tower
    sensor: *tower
pairs:
  image_text: {anchor: image, other: text}
  image_sensor:
    anchor: image
    other: sensor
    sources: [lab]
    logit_scale: {init: 20.0, learned: false}
loss: {_target_: multimodal.objectives.InfoNCE}
negatives: {_target_: multimodal.objectives.InBatch}
candidates: {_target_: multimodal.objectives.AllRanks}
data:
  _target_: multimodal.data.MultimodalDataModule
  batch_size: 4
  num_workers: 0
  seed: ${seed}
  transforms:
    image: &transform {_target_: multimodal.data.ArrayTransform, shape: [4]}
    text: *transform
    sensor: *transform
  sources:
    web:
      _target_: multimodal.data.Source
      manifest: web.json
      modalities: {image: {member: i.npy}, text: {member: json, key: caption}}
    lab:
      _target_: multimodal.data.Source
      manifest: lab.json
      modalities: {image: {member: i.npy}, sensor: {member: [a.npy, b.npy]}}
optimizer: {_target_: torch.optim.AdamW, _partial_: true, lr: 1.0e-3}
scheduler: null
trainer: {_target_: pytorch_lightning.Trainer, max_steps: 10, precision: 32-true}
callbacks: {}
logger: null
evaluation:
  sets:
    held_out:
      source:
        _target_: multimodal.data.Source
        manifest: lab.json
        split: test
        modalities: {image: {member: i.npy}, text: {member: json, key: caption}}
      retrieval: [[image, text]]
      zero_shot: [{modality: image, label: kind}]
"""


@pytest.fixture
def cfg():
    return OmegaConf.create(GOOD)


def problems(cfg) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        check(cfg)
    found = {problem.where: problem.message for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "one problem reported twice"
    for where, problem in found.items():
        assert where in str(caught.value)
        assert problem in str(caught.value)
    return found


def only_problem(cfg) -> tuple[str, str]:
    found = problems(cfg)
    assert len(found) == 1, found
    return next(iter(found.items()))


def test_a_right_configuration_passes(cfg):
    check(cfg)


# key to change -> value, place of the fault, what it must say
STOPPING = "multimodal.training.EarlyStopping"
RULES = {
    "unknown root key": ("sede", 1, "sede", "did you mean 'seed'?"),
    "root value of a wrong type": ("seed", "one", "seed", "given 'one', expected an integer"),
    "root choice": ("debug", "fats", "debug", "did you mean 'fast'?"),
    "missing value": ("pairs.image_text.other", "???", "pairs.image_text.other", "no value yet"),
    "nested parameter": (
        "model.towers.text.encoder.in_feature", 4,
        "model.towers.text.encoder.in_feature", "did you mean 'in_features'?",
    ),
    "nested wrong type": (
        "model.towers.text.encoder.in_features", "adamw",
        "model.towers.text.encoder.in_features", "given 'adamw', expected an integer",
    ),
    "hydra's own keys": (
        "optimizer._partal_", True, "optimizer._partal_", "did you mean '_partial_'?"
    ),
    "a value where a block belongs": (
        "model.towers.text.encoder", 3, "model.towers.text.encoder", "a block with a `_target_`",
    ),
    "a block without its target": (
        "data.transforms.text", {"shape": [4]}, "data.transforms.text", "a block with a `_target_`",
    ),
    "third-party literal": (
        "trainer.precision", "bf16-mixd", "trainer.precision", "did you mean 'bf16-mixed'?"
    ),
    "third-party parameter": ("trainer.max_step", 3, "trainer.max_step", "'max_steps'"),
    "foreign target": ("loss._target_", "os.system", "loss._target_", "allowed_packages"),
    "target that is only known in a job": (
        "loss._target_", "${hydra:runtime.cwd}", "loss._target_", "allowed_packages"
    ),
    "target that is not a name": ("loss._target_", 3, "loss._target_", "allowed_packages"),
    "target that is not there": (
        "loss._target_", "multimodal.objectives.losses.softmax.InfoNEC",
        "loss._target_", "did you mean 'InfoNCE'?",
    ),
    "module that is not there": (
        "model.towers.text.encoder._target_", "multimodal.models.encoders.feature.FeatureEncoder",
        "model.towers.text.encoder._target_", "did you mean 'features'?",
    ),
    "pair without a key": (
        "pairs.image_text", {"anchor": "image"}, "pairs.image_text", "needs 'other'"
    ),
    "key of a pair": (
        "pairs.image_text.wieght", 1.0, "pairs.image_text.wieght", "did you mean 'weight'?"
    ),
    "key of a logit scale": (
        "pairs.image_text.logit_scale", {"learnt": False},
        "pairs.image_text.logit_scale.learnt", "did you mean 'learned'?",
    ),
    "tower of a pair": (
        "pairs.image_text.other", "txt", "pairs.image_text.other", "did you mean 'text'?"
    ),
    "source of a pair": (
        "pairs.image_sensor.sources", ["lab", "lbb"], "pairs.image_sensor.sources", "'lab'?"
    ),
    "source that lacks a side": (
        "pairs.image_sensor.sources", ["web"], "pairs.image_sensor", "no source carries",
    ),
    "source that feeds no pair": (
        "pairs.image_sensor", None, "data.sources.lab", "no pair relates"
    ),
    "key of a modality": (
        "data.sources.web.modalities.text", {"member": "json", "kye": "caption"},
        "data.sources.web.modalities.text.kye", "did you mean 'key'?",
    ),
    "shared tower": ("model.towers.extra", "imgae", "model.towers.extra", "did you mean 'image'?"),
    "embed_dim": ("model.towers.text.head.embed_dim", 9, "model.towers", "image 8, text 9"),
    "no loss": ("loss", None, "pairs.image_text.loss", "neither the pair nor the root"),
    "anchor": (
        "anchor", {"experiment": "a", "checkpoint": None, "towers": ["imag"], "folder": "f"},
        "anchor.towers", "did you mean 'image'?",
    ),
    "evaluated tower": (
        "evaluation.sets.held_out.zero_shot", [{"modality": "imag", "label": "kind"}],
        "evaluation.sets.held_out.zero_shot[0].modality", "did you mean 'image'?",
    ),
    "key of an evaluation set": (
        "evaluation.sets.held_out.galery", 3,
        "evaluation.sets.held_out.galery", "did you mean 'gallery'?",
    ),
    "key of a task": (
        "evaluation.sets.held_out.zero_shot", [{"modality": "image", "lable": "kind"}],
        "evaluation.sets.held_out.zero_shot[0].lable", "did you mean 'label'?",
    ),
    "retrieved modality": (
        "evaluation.sets.held_out.retrieval", [["image", "sensor"]],
        "evaluation.sets.held_out.retrieval[0]", "the set's source has no 'sensor'",
    ),
    "a number out of its range": (
        "loss.label_smoothing", 2.0, "loss.label_smoothing",
        "given 2.0, expected a number in [0, 1)",
    ),
    "a share in the place of a count": (
        "negatives", {"_target_": "multimodal.objectives.Hard", "k": 1.5},
        "negatives.k", "given 1.5, expected a number in (0, 1)",
    ),
    "a count that is none": (
        "negatives", {"_target_": "multimodal.objectives.Hard", "k": 0},
        "negatives.k", "given 0, expected a number at least 1",
    ),
    "a share above 1": (
        "trainer.val_check_interval", 1.5, "trainer.val_check_interval",
        "given 1.5, expected a whole number of batches from 1, or a share of an epoch",
    ),
    "no batches": (
        "trainer.val_check_interval", 0, "trainer.val_check_interval", "given 0, expected",
    ),
    "a metric that is none": (
        "callbacks.stop", {"_target_": STOPPING, "monitor": "nope"},
        "callbacks.stop.monitor",
        "given 'nope', expected a metric of the validation; known: val/lab/image_to_sensor_r@1, ",
    ),
    "a metric of no source": (
        "callbacks.stop", {"_target_": STOPPING, "monitor": "val/labb/image_to_sensor_r@1"},
        "callbacks.stop.monitor", "did you mean 'val/lab/image_to_sensor_r@1'?",
    ),
    "interpolation": ("data.seed", "${sede}", "data.seed", "did you mean 'seed'?"),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_each_rule(cfg, rule):
    key, value, where, words = RULES[rule]
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    found = problems(cfg)
    assert where in found, found
    assert words in found[where]


def test_frozen_towers_at_a_fixed_temperature_learn_nothing(cfg):
    cfg.model.towers.image.frozen = cfg.model.towers.sensor.frozen = True
    where, problem = only_problem(cfg)
    assert where == "pairs.image_sensor"
    assert "image and sensor are frozen" in problem
    cfg.pairs.image_sensor.logit_scale.learned = True
    where, problem = only_problem(cfg)
    assert where == "model.towers.sensor.frozen"
    assert "were never trained together" in problem


def test_an_unknown_modality_of_a_source_is_reported_with_the_nearest(cfg):
    web = cfg.data.sources.web.modalities
    web.imgae = web.pop("image")
    where, problem = only_problem(cfg)
    assert where == "data.sources.web.modalities.imgae"
    assert "did you mean 'image'?" in problem


def test_weight_and_repeat_of_one_source(cfg):
    cfg.data.sources.web.update(weight=1.0, repeat=2.0)
    cfg.data.sources.lab.weight = 1.0
    assert only_problem(cfg) == (
        "data.sources.web",
        "has both weight and repeat; sources are mixed by one of them",
    )


@pytest.mark.parametrize(
    ("given", "where", "said"),
    [
        ({"dims": [2, 3]}, "dims", "ascending widths that end in embed_dim="),
        ({"dims": [4, 2]}, "dims", "ascending"),
        ({"dims": [0]}, "dims", "ascending"),
        ({"weights": [1.0]}, "weights", "needs matryoshka.dims"),
    ],
)
def test_widths_of_matryoshka_end_with_the_whole(cfg, given, where, said):
    cfg.matryoshka = given
    place, problem = only_problem(cfg)
    assert place == f"matryoshka.{where}"
    assert said in problem


def test_a_source_without_weight_beside_one_with(cfg):
    cfg.data.sources.web.weight = 1.0
    assert only_problem(cfg)[0] == "data.sources.lab"


def test_loss_and_negatives_that_do_not_go_together(cfg):
    class Estimate:
        gives = "estimate"

    module = types.ModuleType("own_choices")
    module.Estimate = Estimate
    Estimate.__module__ = "own_choices"
    sys.modules["own_choices"] = module
    try:
        cfg.allowed_packages = ["own_choices"]
        cfg.pairs.image_text.negatives = {"_target_": "own_choices.Estimate"}
        check(cfg)
        cfg.pairs.image_text.loss = {"_target_": "multimodal.objectives.SigLIP"}
        where, problem = only_problem(cfg)
    finally:
        del sys.modules["own_choices"]
    assert where == "pairs.image_text"
    assert "Estimate" in problem
    assert "SigLIP" in problem


def test_all_problems_are_reported_at_once_and_those_of_the_yaml_first(cfg):
    cfg.loss._target_ = "multimodal.objectives.gone.Loss"
    cfg.pairs.image_text.other = "txt"
    cfg.trainer.max_step = 1
    cfg.data.batch_size = "many"
    assert list(problems(cfg)) == [
        "pairs.image_text.other",
        "loss._target_",
        "data.batch_size",
        "trainer.max_step",
    ]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "multimodal_evil.Thing",
        "multimodal.core.hashing.hashlib.blake2b",
        "multimodal.config.check.__globals__",
        "multimodal.cli.main.os.system",
        "pytorch_lightning.trainer.trainer.os.getcwd",
        "torch.nn.modules.module.__builtins__",
        "multimodal.cli.main._train",
        "multimodal.core.hashing",
        "torch.nn.Embedding.from_pretrained",
        "pytorch_lightning.LightningModule.load_from_checkpoint",
        "pytorch_lightning.utilities.compile.torch.load",
        "multimodal.training.build.nn.Linear",
    ],
)
def test_anything_but_an_allowed_class_or_function_is_rejected(target):
    with pytest.raises(TargetError):
        resolve(target, ("multimodal", "torch.nn", "torch.optim", "pytorch_lightning"))


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.StepLR",
        "torch.nn.GELU",
        "pytorch_lightning.Trainer",
        "pytorch_lightning.plugins.environments.SLURMEnvironment",
        "multimodal.models.Tower",
    ],
)
def test_exports_of_allowed_packages_are_resolved(target):
    assert callable(resolve(target, ("torch.nn", "torch.optim", "pytorch_lightning", "multimodal")))


def test_a_foreign_target_is_not_imported(cfg, tmp_path, monkeypatch):
    (tmp_path / "foreign_package.py").write_text("raise SystemExit('was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    cfg.model.towers.image.encoder._target_ = "foreign_package.Encoder"
    assert "model.towers.image.encoder._target_" in problems(cfg)
    assert "foreign_package" not in sys.modules


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("lacking", "import not_there_at_all", "not_there_at_all"),
        ("no_python", "(", "never closed"),
    ],
)
def test_a_module_that_does_not_import_is_one_fault(cfg, tmp_path, monkeypatch, name, code, reason):
    (tmp_path / f"{name}_package.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    cfg.allowed_packages = [f"{name}_package"]
    for tower in cfg.model.towers.values():
        tower.encoder = {"_target_": f"{name}_package.Encoder"}
    where, problem = only_problem(cfg)
    assert where == "model.towers.image.encoder._target_"
    assert reason in problem


def test_own_packages_are_allowed_by_name(cfg, tmp_path, monkeypatch):
    (tmp_path / "own_package.py").write_text(
        "from torch import nn\n"
        "class Encoder(nn.Module):\n"
        "    width = 4\n"
        "    def __init__(self, depth: int = 1):\n"
        "        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg.model.towers.image.encoder = {"_target_": "own_package.Encoder", "dpeth": 2}
    cfg.allowed_packages = ["own_package"]
    assert only_problem(cfg) == (
        "model.towers.image.encoder.dpeth",
        "own_package.Encoder has no parameter 'dpeth'; did you mean 'depth'?",
    )


class Colour(enum.Enum):
    RED = "red"


FITTING = [
    (3, int), (3, float), (0.5, float), (None, int | None), ("a", str), (True, bool),
    ([1, 2], list[int]), ([1, 2], tuple[int, int]), ([1], tuple[int, ...]), ([], Sequence[int]),
    ({"a": 1}, Mapping[str, int]), ("sum", Literal["sum", "mean"]), ("red", Colour),
    ("RED", Colour), (0.1, float | torch.Tensor), ("x.json", Path), ({"_target_": "a.B"}, Callable),
    ({"_target_": "a.B"}, torch.nn.Module), ("auto", int | str), ([0, 1], list[int] | str | int),
]  # fmt: skip
WRONG = [
    (True, int), (0.5, int), ("3", int), ("a", float), (1, str), (1, bool), (None, int),
    ("ab", list[str]), ([1, "b"], list[int]), ([1, 2, 3], tuple[int, int]), (3, list[int]),
    ({"a": "b"}, dict[str, int]), ("max", Literal["sum", "mean"]), ("blue", Colour), (1, Path),
    ("a", float | torch.Tensor), (3, torch.nn.Module), ({"_target_": "a.B"}, int),
    ("gelu", Callable[..., int]), ({"a": 1}, torch.nn.Module), ([1], int), (1, Literal[True]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "annotation"), FITTING)
def test_fitting_values(value, annotation):
    assert list(mismatches(value, annotation, "x")) == []


@pytest.mark.parametrize(("value", "annotation"), WRONG)
def test_plainly_wrong_values(value, annotation):
    assert [problem.where[0] for problem in mismatches(value, annotation, "x")] == ["x"]


def test_annotations_in_words():
    assert describe(int | None) == "an integer or null"
    assert describe(list[float]) == "a list (a number)"
    assert describe(Literal["a", "b"]) == "one of 'a', 'b'"
    (problem,) = mismatches(1e3, int, "x")
    assert problem.message == "given 1000.0, expected an integer; write 1000"


def test_defaults_are_bound_into_a_copy(cfg):
    before = copy.deepcopy(cfg)
    bound = defaults_bound(cfg)
    assert cfg == before
    check(bound)
    assert bound.optimizer.weight_decay == 0.01
    assert bound.optimizer.betas == [0.9, 0.999]
    assert bound.optimizer.lr == 1e-3
    assert bound.data.sources.web.repeat == 1.0
    assert bound.pairs.image_sensor.logit_scale == {"init": 20.0, "learned": False, "max": 100.0}
    assert bound.pairs.image_text.weight == 1.0
    assert bound.evaluation.sets.held_out.gallery == 6
    assert OmegaConf.to_container(bound, resolve=False)["data"]["seed"] == "${seed}"
    assert "params" not in bound.optimizer
    assert "dataloaders" not in bound.trainer
