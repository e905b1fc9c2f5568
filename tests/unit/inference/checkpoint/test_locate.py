"""A run's folder stands for its best checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.inference.checkpoint.locate import checkpoint_at


def write(folder: Path, scores: dict[int, dict[int, float]], mode: str = "max") -> Path:
    """A run with the checkpoints of ``scores``: step -> the scores that are known then."""
    (folder / "checkpoints").mkdir(parents=True)
    for step, known in scores.items():
        content = {
            "state_dict": {"w": torch.zeros(1)},
            "config": json.dumps({"callbacks": {"checkpoint": {"mode": mode}}}),
            "callbacks": {"Checkpoint": {"scores": known}},
        }
        checkpoint_file.write_atomically(content, folder / "checkpoints" / f"step={step:08d}.ckpt")
    return folder


KNOWN = {5: {}, 10: {5: 0.1}, 15: {5: 0.1, 10: 0.3}, 20: {5: 0.1, 10: 0.3, 15: 0.2}}


@pytest.mark.parametrize(("mode", "step"), [("max", 10), ("min", 5)])
def test_the_best_of_a_run(tmp_path, mode, step):
    run = write(tmp_path / "run", KNOWN, mode)
    for path in (run, str(run), run / "checkpoints"):
        assert checkpoint_at(path).name == f"step={step:08d}.ckpt"


def test_the_newest_where_there_is_no_score_or_the_best_is_gone(tmp_path):
    run = write(tmp_path / "a", {5: {}, 10: {}})
    assert checkpoint_at(run).name == "step=00000010.ckpt"
    run = write(tmp_path / "b", {5: {}, 10: {2: 0.9, 5: float("nan")}})
    assert checkpoint_at(run).name == "step=00000010.ckpt"


def test_a_damaged_newest_is_passed_over(tmp_path, capsys):
    run = write(tmp_path / "run", {5: {}, 10: {}})
    (run / "checkpoints" / "step=00000010.ckpt").write_bytes(b"cut")
    assert checkpoint_at(run).name == "step=00000005.ckpt"
    assert "step=00000010.ckpt" in capsys.readouterr().err


def test_a_file_is_itself(tmp_path):
    assert checkpoint_at(tmp_path / "mine.ckpt") == tmp_path / "mine.ckpt"


def test_a_folder_without_any_says_what_was_expected(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint; expected a run's folder"):
        checkpoint_at(tmp_path)
    write(tmp_path / "clip" / "monday", {5: {}})
    with pytest.raises(CheckpointError, match=r"give one of them: .*clip/monday"):
        checkpoint_at(tmp_path / "clip")
    shutil.rmtree(tmp_path / "clip" / "monday" / "checkpoints")
    (tmp_path / "clip" / "monday" / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint_at(tmp_path / "clip" / "monday")
