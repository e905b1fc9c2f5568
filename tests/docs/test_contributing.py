"""CONTRIBUTING.md is true: its examples are written to files and run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_helpers import image_bytes
from experiment_helpers import OWN_CONFIGS, chdir, composed, losses, write_sensor_shards

from multimodal.cli import make_shards
from multimodal.cli.train import train

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.S)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The page's files in a folder of their own, as a user would have them."""
    for name, text in BLOCKS:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_loss_encoder_and_modality_train_together(written, monkeypatch):
    monkeypatch.setenv("SENSOR_SHARDS", str(write_sensor_shards(written / "shards")))
    words = [
        "+experiment=mine",
        f"hydra.searchpath=[file://{written / 'configs'},file://{OWN_CONFIGS}]",
        f"logger.csv.folder={written}",
        "callbacks.progress=null",
        "trainer.max_steps=4",
        "trainer.log_every_n_steps=1",
        "trainer.val_check_interval=4",
    ]
    with composed(*words) as cfg, chdir(written):
        assert cfg.loss._target_ == "mine.losses.SoftHinge"
        train(cfg)
    assert len(losses(written)) == 4


def test_a_source_is_packed_and_read(written):
    photos = written / "photos"
    photos.mkdir()
    for number in range(3):
        pixels = np.full((8, 8, 3), 80 * number, np.uint8)
        (photos / f"{number}.jpg").write_bytes(image_bytes(pixels, "JPEG"))
        (photos / f"{number}.txt").write_text(f"grey {number}")
    (command,) = re.findall(r"^python scripts/make_shards.py (.*)$", PAGE, re.M)
    assert make_shards.main(shlex.split(command)) == 0
    from mine import photos as example  # type: ignore[import-not-found]

    assert len(example.photos) == 3
    assert str(example.first["text"]).startswith("grey")


def test_files_that_it_names_are_there():
    for path in re.findall(r"`((?:multimodal|tests|configs|docs|scripts)/[\w/.]+)`", PAGE):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("failing", "status"), [("", 0), ("lint", 2), ("test", 2), ("test-heavy", 2)]
)
def test_continuous_integration_checks_style_levels_and_types_before_the_tests(
    tmp_path, failing, status
):
    """Its commands, and their order; what they run is named by the Makefile."""
    recorded = tmp_path / "recorded"
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\necho "$*" >> {recorded}\ncase "$1" in "{failing}") exit 2; esac\n')
    make.chmod(0o755)
    (tmp_path / "chromium").symlink_to(make)  # nothing is to be installed
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([ROOT / ".ci/run"], env=environment, cwd=tmp_path, check=False)
    assert done.returncode == status
    steps = ["lint types", "test", "test-heavy", "test-triton"]
    last = next((n for n, step in enumerate(steps) if failing and step.startswith(failing)), -1)
    expected = steps[: last + 1] or steps
    assert recorded.read_text().splitlines() == expected
    planned = subprocess.run(
        ["make", "--dry-run", "--always-make", "lint", "types"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    tools = [line.removeprefix(".venv/bin/") for line in planned if line.startswith(".venv/bin/")]
    assert tools[-4:] == ["ruff check .", "ruff format --check .", "lint-imports", "mypy"]
