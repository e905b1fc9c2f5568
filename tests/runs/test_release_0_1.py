"""What release 0.1 wrote opens as before: shards, run folders and checkpoints.

`vectors/release_0_1` holds the run folders of two small runs, of pairs and of a fusion, as they
were when they fell in their middle, and the shards that they read; with the figures, embeddings and
losses that the same code then gave.
"""

import csv
import json
import platform
import shutil
from pathlib import Path

import pytest
import torch
from experiment_helpers import train_here

from multimodal.data.source import Source
from multimodal.evaluation.run import evaluate_run
from multimodal.evaluation.trained_pairs import trained_pairs
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.load import load_model
from multimodal.inference.checkpoint.weights import pair_temperatures, weights_of
from multimodal.inference.load import embedder_of

STORED = Path(__file__).parents[1] / "vectors" / "release_0_1"
RUNS = {"contrastive": "sensor", "fusion": "sensor_fusion"}
STEPS = 8  # the checkpoint is of the middle of the run


def made_with() -> dict[str, str]:
    """What the last digits of a float depend on."""
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def settings(run: str) -> list[str]:
    """What makes the runs small, as it was typed then."""
    towers = [
        "model.towers.image.encoder.channels=[4,8]",
        "model.towers.image.encoder.groups=2",
        "model.towers.sensor.encoder.width=8",
        "model.towers.sensor.encoder.hidden=8",
    ]
    of_run = {
        "contrastive": ["embed_dim=8"],
        "fusion": ["fusion.width=8", "fusion.num_heads=2"],
    }
    return [
        *towers,
        *of_run[run],
        "data.batch_size=8",
        "data.eval_batch_size=8",
        f"trainer.max_steps={STEPS}",
        "trainer.val_check_interval=4",
        "callbacks.checkpoint.every_n_train_steps=4",
        "logger.csv.folder=.",
    ]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A copy of what was stored; the runs name their shards relative to their own folders."""
    folder = tmp_path / "release"
    shutil.copytree(STORED, folder)
    monkeypatch.setenv("SENSOR_SHARDS", "../shards")
    return folder


def same(got: dict, expected: dict) -> None:
    """Equal within rounding: processors of one instruction set sum in different orders, too."""
    alike = made_with() == json.loads((STORED / "made_with.json").read_text())
    tolerance = 1e-6 if alike else 1e-4
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True), name


def checkpoint_in(folder: Path) -> Path:
    return folder / "checkpoints" / f"step={STEPS // 2:08d}.ckpt"


def losses_in(folder: Path) -> dict[str, float]:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return {row["step"]: float(row["train/loss"]) for row in rows}


def figures(run: str, folder: Path) -> dict[str, float]:
    path = checkpoint_in(folder)
    model, cfg = load_model(path)
    warm = pair_temperatures(cfg, weights_of(store.read(path), path))
    return evaluate_run(model, cfg, folder, trained_pairs(cfg), warm).flat()


def embeddings(folder: Path) -> dict[str, list]:
    model, cfg = load_model(checkpoint_in(folder))
    entries = {"image": {"member": "view.png"}, "sensor": {"member": "reading.npy"}}
    source = Source("../shards/measured.json", entries, split="test")
    rows = embedder_of(model, cfg, "cpu").source(source, list(entries))
    return {name: vectors.flatten().tolist() for name, vectors in rows.embeddings.items()}


@pytest.mark.quick
@pytest.mark.parametrize("run", RUNS)
def test_a_checkpoint_has_the_figures_that_it_had(run, stored, monkeypatch):
    monkeypatch.chdir(stored / run)
    same(figures(run, Path()), json.loads(Path("expected.json").read_text())["figures"])


@pytest.mark.quick
def test_a_checkpoint_gives_the_embeddings_that_it_gave(stored, monkeypatch):
    monkeypatch.chdir(stored / "contrastive")
    same(embeddings(Path()), json.loads(Path("expected.json").read_text())["embeddings"])


@pytest.mark.heavy
@pytest.mark.parametrize("run", RUNS)
def test_a_run_goes_on_with_the_losses_that_it_had(run, stored):
    folder = stored / run
    train_here(folder, *settings(run), "resume=auto", experiment=RUNS[run])
    same(losses_in(folder), json.loads((folder / "expected.json").read_text())["losses"])
