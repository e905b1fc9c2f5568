"""A small experiment of two modalities that trains in seconds, and ways to run it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from data_helpers import image_bytes, json_bytes, npy_bytes, write_source
from forked_programs import run_program
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

from multimodal.cli.train import train
from multimodal.config import config_dir
from multimodal.inference.checkpoint import store

ROOT = Path(__file__).parents[2]
OWN_CONFIGS = ROOT / "tests" / "own_configs"
SENSOR = ["+experiment=sensor", f"hydra.searchpath=[file://{OWN_CONFIGS}]"]


def write_sensor_shards(folder: Path, train: int = 160, lacking: int = 0) -> Path:
    """Pictures of four grey levels, and a sensor that measures these through a fixed mixture.

    The JSON says which level is the highest. Every ``lacking``-th sample has no reading; 0: none.
    """
    random = np.random.default_rng(0)
    mixture = random.standard_normal((12, 4))

    def samples(split: str, count: int) -> list[tuple[str, dict[str, bytes]]]:
        made = []
        for number in range(count):
            levels = random.uniform(0, 1, 4)
            picture = np.kron(levels.reshape(2, 2), np.ones((8, 8)))[..., None] * np.full(3, 255)
            reading = mixture @ (levels - 0.5) + 0.02 * random.standard_normal(12)
            members = {
                "json": json_bytes(highest=str(levels.argmax())),
                "reading.npy": npy_bytes(reading.astype(np.float32)),
                "view.png": image_bytes(picture.astype(np.uint8)),
            }
            if lacking and number % lacking == 0:
                del members["reading.npy"]
            made.append((f"{split}{number:04d}", members))
        return made

    splits = {
        "train": [samples("a", train // 2), samples("b", train - train // 2)],
        "val": [samples("c", 48)],
        "test": [samples("d", 100)],
    }
    write_source(folder, splits, name="measured")
    return folder


@contextmanager
def composed(*overrides: str) -> Iterator[DictConfig]:
    """The configuration of these overrides, as the command line would have it."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield compose("train", list(overrides))


def run_training(
    words: Sequence[str],
    shards: Path | None = None,
    timeout: float = 300.0,
    fresh: bool = False,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """`scripts/train.py` on one thread, in a forked process (`forked_programs`).

    Where ``fresh``, in a new one as a user runs it.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    if shards is not None:
        env["SENSOR_SHARDS"] = str(shards)
        words = ["--config-dir", str(OWN_CONFIGS), *words]
    command = [str(ROOT / "scripts" / "train.py"), *words]
    if not fresh:
        with tempfile.TemporaryDirectory() as folder:
            return run_program(command, env, ROOT, Path(folder), timeout)
    return subprocess.run(
        [sys.executable, *command],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def run_command(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`multimodal COMMAND ...` on one thread, in a forked process (`forked_programs`)."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        return run_program(["-m", "multimodal.cli", *words], env, cwd, Path(folder), 300.0)


def losses(folder: Path) -> dict[int, str]:
    """Step -> training loss as it stands in `metrics.csv`, to the last digit.

    A row of a validation only, as of the step that a run goes on from in another folder, has none.
    """
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): row["train/loss"] for row in rows if row["train/loss"]}


def train_here(folder: Path, *overrides: str, experiment: str = "sensor") -> None:
    """Trains an experiment of ours in this process, with ``folder`` as the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        f"+experiment={experiment}",
        SENSOR[1],
        f"logger.csv.folder={folder}",
        "callbacks.progress=null",
        *overrides,
    ]
    with composed(*words) as cfg, chdir(folder):
        train(cfg)


@contextmanager
def chdir(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def weights(folder: Path, step: int) -> dict[str, Tensor]:
    """The state dict of a run's checkpoint."""
    content = store.read(folder / "checkpoints" / f"step={step:08d}.ckpt")
    state: dict[str, Tensor] = content["state_dict"]
    return state
