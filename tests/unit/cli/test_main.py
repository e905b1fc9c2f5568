"""The command line: what a user types, and what comes back before torch is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from experiment_helpers import OWN_CONFIGS, write_sensor_shards
from marks import some

from multimodal.cli import main
from multimodal.config import ConfigError, compose_or_explain, normalize_args

ROOT = Path(__file__).parents[3]

EXPERIMENT = """# @package _global_
defaults:
  - override /model: clip_sample
  - _self_
data: {sources: {emoji: {weight: 1.0}}, list: [1, 2]}
pairs: {}
"""


@pytest.fixture
def own(tmp_path):
    """A folder of the user's own, with the experiment `mine`."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    return tmp_path


def explained(own, *words) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        compose_or_explain(["--config-dir", str(own), *words], "train")
    return {problem.where: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(
    "words",
    [
        ["+experiment=mine"],
        ["+experiment=mine", "optimizer.lr=1", "~data.sources.emoji", "+data.more=2"],
        ["+experiment=mine", "loss=siglip", "logger=wandb", "hydra.run.dir=x", "data.list.0=3"],
        ["+experiment=mine", "encoder@model.towers.image.encoder=vit_b16"],
        ["-m", "+experiment=mine,clip", "seed=1,2", "optimizer.lr=interval(0,1)", "loss=glob(*)"],
        ["+experiment=mine", "--cfg", "job"],
        ["+experiment=clip_scratch", "~evaluation", "~logger", "~scheduler"],
        ["--cfg", "job"],
        ["--help"],
        ["--hydra-help"],
    ],
    ids=" ".join,
)
def test_what_composes_is_let_through(own, words):
    compose_or_explain(["--config-dir", str(own), *words], "train")


WORDS = {
    "key": ("trainer.max_step=3", "did you mean 'trainer.max_steps'?"),
    "root key": ("sede=1", "did you mean 'seed'?"),
    "key without its block": ("max_steps=3", "did you mean 'trainer.max_steps'?"),
    "key below a typo": ("optimzer.lr=3", "did you mean 'optimizer.lr'?"),
    "key in a tower": (
        "model.towers.image.encoder.image_sze=8",
        "did you mean 'model.towers.image.encoder.image_size'?",
    ),
    "no key like it": ("trainer.qqqq=3", "known: "),
    "key of hydra": ("hydra.run.dri=x", "did you mean 'hydra.run.dir'?"),
    "key to delete": ("~sede", "did you mean 'seed'?"),
    "swept key": ("sede=1,2", "did you mean 'seed'?"),
    "group": ("optimzer=adamw", "did you mean 'optimizer'?"),
    "option": ("loss=infonce", "did you mean loss=info_nce? options: "),
    "option of a sweep": ("loss=info_nce,siglp", "did you mean loss=siglip?"),
    "nested option": (
        "encoder@model.towers.image.encoder=vit_b61",
        "did you mean encoder@model.towers.image.encoder=vit_b16?",
    ),
    "nested group": (
        "tower@model.towers.imag=image_small", "did you mean 'tower@model.towers.image'?"
    ),
    "plus too many": ("+optimizer=adamw", "write optimizer=adamw"),
    "plus before a key": ("+seed=1", "write seed=1"),
    "plus too few": ("experiment=clip_scratch", "write +experiment=clip_scratch"),
    "no option": ("evaluation=null", "write ~evaluation"),
    "no value": ("seed", "key=value"),
}  # fmt: skip


@pytest.mark.parametrize("case", some(WORDS, every=4))
def test_a_misspelt_word_is_answered_with_the_right_one(own, case):
    word, answer = WORDS[case]
    words = [word] if case == "plus too few" else ["+experiment=mine", word]
    found = explained(own, *words)
    assert list(found) == [word]
    assert answer in found[word]
    assert "append" not in found[word]


def test_a_misspelt_experiment(own):
    found = explained(own, "+experiment=imagebnd", "seed=1")
    assert "did you mean +experiment=imagebind?" in found["+experiment=imagebnd"]
    assert "mine" in found["+experiment=imagebnd"]


def test_several_words_at_once(own):
    right = ["seed=2", "loss._target_=x", "data.list.1=3", "+data.new=1", "loss=siglip"]
    found = explained(own, "+experiment=mine", "sede=1", *right, "trainer.max_step=3")
    assert list(found) == ["sede=1", "trainer.max_step=3"]


def test_nothing_chosen_names_the_experiments(own):
    (problem,) = explained(own).values()
    assert "+experiment=NAME" in problem
    assert "mine" in problem


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("- override /model: clip_smaple", "did you mean 'clip_sample'?"),
        ("- override /modle: clip_sample", "did you mean 'model'?"),
    ],
)
def test_a_misspelt_choice_in_an_experiment_file(own, line, answer):
    path = own / "experiment" / "mine.yaml"
    path.write_text(EXPERIMENT.replace("- override /model: clip_sample", line))
    assert answer in explained(own, "+experiment=mine")["+experiment=mine"]


def test_an_experiment_file_without_its_first_line(own):
    path = own / "experiment" / "mine.yaml"
    path.write_text(EXPERIMENT.replace("# @package _global_", "# mine"))
    assert "# @package _global_" in explained(own, "+experiment=mine")["+experiment=mine"]


def test_a_file_that_is_not_yaml(own):
    path = own / "experiment" / "mine.yaml"
    path.write_text(EXPERIMENT + "pairs: {}\n")
    (found,) = explained(own, "+experiment=mine").items()
    assert found[0] == f"{path}, line 7"
    assert "duplicate key pairs" in found[1]


def test_a_config_folder_that_is_not_there(own):
    assert list(explained(own / "gone")) == [f"--config-dir {own / 'gone'}"]


def test_debug_comes_after_the_experiment():
    assert normalize_args(["debug=fast", "+experiment=clip_scratch", "seed=1"]) == [
        "+experiment=clip_scratch",
        "+debug=fast",
        "seed=1",
    ]
    assert (
        normalize_args(["-m", "+experiment=a,b", "+debug=fast,overfit"])[2] == "+debug=fast,overfit"
    )
    words = ["checkpoint=a/step=8.ckpt", "resume='b=1'", "c=range(stop=3)", "--x=y=z"]
    assert normalize_args(words) == [
        "checkpoint='a/step=8.ckpt'", "resume='b=1'", "c=range(stop=3)", "--x=y=z",
    ]  # fmt: skip
    assert normalize_args(["trainer.debug=1", "--config-dir", "x"]) == [
        "trainer.debug=1",
        "--config-dir",
        "x",
    ]


# What takes long to import. Where a start needs none of it, none of it is imported.
HEAVY = {
    "torch", "pytorch_lightning", "torchmetrics.text", "torchmetrics.functional",
    "torch._dynamo.convert_frame", "torch.onnx",
    "torch.distributed.tensor", "torch.distributed.fsdp", "sympy", "transformers", "tokenizers",
    "peft", "sklearn", "scipy", "matplotlib", "pandas", "pyarrow", "faiss", "wandb", "optuna",
    "joblib", "submitit", "jinja2", "soundfile", "av", "aiohttp", "webdataset", "starlette",
}  # fmt: skip

# The program as a user runs it, with a last word on what it imported.
PROGRAM = f"""
import os, sys
from multimodal.cli import main as cli
sys.argv = ["train", *sys.argv[1:]]
def heavy(*_):
    print("heavy", sorted(set({sorted(HEAVY)}) & sys.modules.keys()), flush=True)
if "STOP_AT_FIRST_STEP" in os.environ:
    train = cli._train
    def until_the_first_step(cfg):
        from multimodal.training.modules.base import TrainingModule
        TrainingModule.on_train_batch_end = lambda *_: (heavy(), os._exit(0))
        train(cfg)
    cli._train = until_the_first_step
try:
    cli.train()
except SystemExit as stop:
    print("status", stop.code)
heavy()
"""


def run(*words: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_imports_nothing_heavy(tmp_path):
    done = run("--help", folder=tmp_path)
    assert done.stdout.endswith("status 0\nheavy []\n"), done.stderr
    for expected in (
        "+experiment=NAME", "imagebind", "negatives: ", "trainer: cpu, ddp, fsdp, gpu",
        "resume=auto|PATH", "callbacks.checkpoint.every_n_train_steps", "multimodal-train", "-m",
    ):  # fmt: skip
        assert expected in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_threads_that_wait_leave_their_core_unless_the_environment_says_otherwise(
    tmp_path, given, spins
):
    program = """
import ctypes, importlib.util, pathlib, sys
from multimodal.cli import main as cli
sys.argv = ["train", "+experiment=clip_scratch", "hydra.run.dir=here"]
torch = pathlib.Path(importlib.util.find_spec("torch").origin).parent
(threads,) = (torch / "lib").glob("libgomp*")  # what torch loads, and reads the environment
cli.run("train", lambda cfg: ctypes.CDLL(str(threads)))
"""
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = {**kept, "PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "VERBOSE", **given}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (shown,) = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    assert int(shown) > 10**6 if spins is None else shown == spins


@pytest.mark.parametrize(
    ("given", "cores", "before", "after"),
    [
        ({}, 8, 8, 7),
        ({}, 2, 2, 1),
        ({}, 1, 1, 1),
        ({}, 8, 4, 4),  # fewer threads than cores, by hyperthreading
        ({}, 8, 7, 7),  # the second training of a process
        ({"LOCAL_WORLD_SIZE": "1"}, 8, 8, 7),
        ({"LOCAL_WORLD_SIZE": "2"}, 8, 8, None),
        ({"OMP_NUM_THREADS": "8"}, 8, 8, None),
    ],
)
def test_a_training_leaves_a_core_to_what_reads_the_data(monkeypatch, given, cores, before, after):
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr("torch.get_num_threads", lambda: before)
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    monkeypatch.setattr(main, "check", lambda _: None)
    monkeypatch.setattr("multimodal.cli.train.train", lambda cfg, checked: chosen.append(cfg))
    main._train("the configuration")
    assert chosen == [*([] if after is None else [after]), "the configuration"]


KEPT = """
import resource, sys
from multimodal.cli import main as cli
sys.argv = ["train", "+experiment=clip_scratch", "hydra.run.dir=here"]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use(cfg):
    import numpy
    def fill():
        before = faults()
        numpy.ones(100 << 20, dtype=numpy.uint8)  # from malloc, as torch's are
        return faults() - before
    fill()
    print("faults", min(fill() for _ in range(8)))  # a small block may stand in the way of one
cli.run("train", use)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, True),
        ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False),
    ],
)
def test_freed_memory_is_used_again_unless_the_environment_says_otherwise(tmp_path, given, kept):
    names = [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]
    environment = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        [sys.executable, "-c", KEPT],
        cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT), **given},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (count,) = re.findall(r"faults (\d+)", done.stdout)
    huge = 100 // 2  # of 2 MiB, where the kernel gives such; else 512 times as many
    assert int(count) < 10 if kept else int(count) >= huge, done.stdout


@pytest.mark.parametrize("words", [["+experiment=clp"], ["optimizr.lr=3"], []], ids=str)
def test_a_wrong_command_ends_at_once_and_leaves_nothing(tmp_path, words):
    done = run(*words, folder=tmp_path)
    assert done.stdout.endswith("status 2\nheavy []\n"), done.stderr
    assert "error in the configuration" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_faults_of_an_experiment_file_come_together_and_before_any_data(own):
    """Those that only signatures can tell: they need torch, but neither samples nor weights."""
    (own / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - clip_scratch\n  - _self_\n"
        "sede: 1\n"
        "model: {towers: {image: {encoder: {image_sze: 64}}}}\n"
        "pairs: {image_text: {other: txt}}\n"
        "data: {sources: {emoji: {manifest: not/there.json, modalities: {imgae: {member: a}}}}}\n"
    )
    done = run("--config-dir", str(own), "+experiment=mine", "hydra.run.dir=run", folder=own)
    assert done.stdout.endswith("status 2\nheavy ['pytorch_lightning', 'tokenizers', 'torch']\n"), (
        done.stderr
    )
    assert "4 errors in the configuration" in done.stderr
    for answer in ("'seed'?", "'image_size'?", "'text'?", "'image'?"):
        assert f"did you mean {answer}" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in (own / "run").iterdir()) == [".hydra", "run.json", "train.log"]


def test_a_training_imports_nothing_before_it_is_used(tmp_path):
    """transformers, scikit-learn, matplotlib and TorchDynamo are not what a first step needs."""
    write_sensor_shards(tmp_path / "shards", train=64)
    words = ["--config-dir", str(OWN_CONFIGS), "+experiment=sensor", "hydra.run.dir=run"]
    words += ["data.num_workers=0", "data.batch_size=32"]
    shards = str(tmp_path / "shards")
    done = run(*words, folder=tmp_path, STOP_AT_FIRST_STEP="1", SENSOR_SHARDS=shards)
    assert done.stdout.endswith("heavy ['pytorch_lightning', 'tokenizers', 'torch']\n"), done


@pytest.mark.slow
def test_lightning_does_without_torchmetrics_until_it_is_used():
    """Then both are as without us: metrics are recognised, and models compile."""
    program = """
import sys
from multimodal.core.process.lean_imports import import_lightning
import_lightning()
import torch
from pytorch_lightning.core import module as core
from lightning_fabric.wrappers import OptimizedModule
heavy = {"torchmetrics.text", "matplotlib", "scipy", "transformers", "sympy"}
assert not heavy & sys.modules.keys()
model = torch.nn.Linear(2, 1)
assert not isinstance(model, (core.Metric, core.MetricCollection, OptimizedModule))

def step():
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()

optimizer = torch.optim.AdamW(model.parameters())
step()
store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
replicated = torch.nn.parallel.DistributedDataParallel(model)
replicated(torch.ones(1, 2)).sum().backward()
step()
assert not {"sympy", "torch._dynamo.utils"} & sys.modules.keys()

import torchmetrics
assert torchmetrics.utilities.plot.plot_single_or_multi_val
from torchmetrics.text import BERTScore
mean = torchmetrics.MeanMetric()
assert isinstance(mean, core.Metric) and not isinstance(model, core.Metric)
assert torchmetrics.Metric is torchmetrics.metric.Metric is core.Metric
assert isinstance(torchmetrics.MetricCollection([mean]), core.MetricCollection)

import torch._dynamo.config as config
assert config is torch._dynamo.config is sys.modules["torch._dynamo.config"]
compiled = torch.compile(model, backend="eager")
assert isinstance(compiled, OptimizedModule) and compiled(torch.ones(1, 2)).shape == (1, 1)
assert torch._dynamo.disable is torch._dynamo.decorators.disable
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"]
assert torch._dynamo.utils.get_optimize_ddp_mode() == "ddp_optimizer"  # as was answered before
replicated(torch.ones(1, 2)).sum().backward()
torch.distributed.destroy_process_group()
step()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
