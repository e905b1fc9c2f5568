"""Checkpoints are whole or not there, and reading them executes nothing."""

import os
import pickle

import pytest
import torch

from multimodal.training import checkpoint_io


def test_a_failed_save_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "step=00000001.ckpt"
    checkpoint_io.write_atomically({"state_dict": {"w": torch.ones(2)}}, path)
    before = path.read_bytes()

    class Unsavable:
        def __reduce__(self):
            raise RuntimeError("cannot be saved")

    with pytest.raises(RuntimeError, match="cannot be saved"):
        checkpoint_io.write_atomically({"state_dict": {}, "bad": Unsavable()}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / "a" / "step=00000001.ckpt"
    checkpoint_io.write_atomically({"state_dict": {"w": torch.arange(3)}, "global_step": 7}, path)
    content = checkpoint_io.read(path)
    assert content["global_step"] == 7
    assert content["state_dict"]["w"].tolist() == [0, 1, 2]


class Payload:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_a_pickled_payload_is_refused_and_not_executed(tmp_path):
    path, trace = tmp_path / "evil.ckpt", tmp_path / "executed"
    torch.save({"state_dict": {}, "x": Payload(trace)}, path)
    with pytest.raises(checkpoint_io.CheckpointError, match="cannot be read"):
        checkpoint_io.read(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))  # the payload does work when executed
    assert trace.exists()


def test_missing_truncated_and_foreign_files_are_named(tmp_path):
    good = tmp_path / "step=00000003.ckpt"
    checkpoint_io.write_atomically({"state_dict": {"w": torch.ones(1000)}}, good)
    with pytest.raises(checkpoint_io.CheckpointError, match="step=00000003"):
        checkpoint_io.read(tmp_path / "step=00000004.ckpt")
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(checkpoint_io.CheckpointError, match=r"cut.ckpt cannot be read"):
        checkpoint_io.read(cut)
    other = tmp_path / "other.ckpt"
    torch.save({"weights": torch.ones(1)}, other)
    with pytest.raises(checkpoint_io.CheckpointError, match="no `state_dict`"):
        checkpoint_io.read(other)


def test_newest_goes_by_step_not_by_name_or_time(tmp_path):
    for step in (9, 100, 20):
        checkpoint_io.write_atomically({"state_dict": {}}, tmp_path / f"step={step}.ckpt")
    (tmp_path / "step=999.ckpt.tmp").touch()
    (tmp_path / "step=best.ckpt").touch()
    assert checkpoint_io.newest(tmp_path) == tmp_path / "step=100.ckpt"
    assert checkpoint_io.newest(tmp_path / "absent") is None
