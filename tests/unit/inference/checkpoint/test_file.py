"""Checkpoints are whole or not there, and reading them executes nothing."""

import multiprocessing
import os
import pickle
import random
import re
import signal
import tempfile
import time

import pytest
import torch

from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint import store
from multimodal.training import checkpoint_plugin


def test_a_failed_save_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "step=00000001.ckpt"
    checkpoint_file.write_atomically({"state_dict": {"w": torch.ones(2)}}, path)
    before = path.read_bytes()

    class Unsavable:
        def __reduce__(self):
            raise RuntimeError("cannot be saved")

    with pytest.raises(RuntimeError, match="cannot be saved"):
        checkpoint_file.write_atomically({"state_dict": {}, "bad": Unsavable()}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / "a" / "step=00000001.ckpt"
    checkpoint_file.write_atomically({"state_dict": {"w": torch.arange(3)}, "global_step": 7}, path)
    content = store.read(path)
    assert content["global_step"] == 7
    assert content["state_dict"]["w"].tolist() == [0, 1, 2]


class Payload:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_a_pickled_payload_is_rejected_and_not_executed(tmp_path):
    path, trace = tmp_path / "evil.ckpt", tmp_path / "executed"
    checkpoint_file.write_atomically({"state_dict": {}, "x": Payload(trace)}, path)
    with pytest.raises(checkpoint_file.CheckpointError, match="cannot be read"):
        store.read(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))  # the payload does work when executed
    assert trace.exists()


def test_missing_truncated_and_foreign_files_are_named(tmp_path):
    good = tmp_path / "step=00000003.ckpt"
    checkpoint_file.write_atomically({"state_dict": {"w": torch.ones(1000)}}, good)
    with pytest.raises(checkpoint_file.CheckpointError, match="step=00000003"):
        store.read(tmp_path / "step=00000004.ckpt")
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(checkpoint_file.CheckpointError, match=r"cut.ckpt cannot be read"):
        store.read(cut)
    other = tmp_path / "other.ckpt"
    checkpoint_file.write_atomically({"weights": torch.ones(1)}, other)
    with pytest.raises(checkpoint_file.CheckpointError, match="no `state_dict`"):
        store.read(other)
    torch.save({"state_dict": {"w": torch.ones(1)}}, other)
    with pytest.raises(checkpoint_file.CheckpointError, match="does not end with its hash"):
        store.read(other)


def test_newest_goes_by_step_not_by_name_or_time(tmp_path):
    for step in (9, 100, 20):
        checkpoint_file.write_atomically({"state_dict": {}}, tmp_path / f"step={step}.ckpt")
    (tmp_path / "step=999.ckpt.tmp").touch()
    (tmp_path / "step=best.ckpt").touch()
    assert store.newest(tmp_path) == tmp_path / "step=100.ckpt"
    assert store.newest(tmp_path / "absent") is None


def test_a_flipped_bit_is_detected_and_the_previous_checkpoint_is_used(tmp_path, capsys):
    for step in (10, 20):
        content = {"state_dict": {"w": torch.full((1000,), float(step))}, "global_step": step}
        checkpoint_file.write_atomically(content, tmp_path / f"step={step:08d}.ckpt")
    newest = tmp_path / "step=00000020.ckpt"
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1  # inside the tensor's values, where torch would notice nothing
    newest.write_bytes(raw)
    assert torch.load(newest, weights_only=True)["global_step"] == 20
    with pytest.raises(checkpoint_file.CheckpointError, match="hash mismatch"):
        store.read(newest)
    assert store.newest(tmp_path) == tmp_path / "step=00000010.ckpt"
    assert "hash mismatch" in capsys.readouterr().err
    newest.with_name("step=00000010.ckpt").write_bytes(b"")
    with pytest.raises(checkpoint_file.CheckpointError, match="none of the 2 checkpoints"):
        store.newest(tmp_path)


def test_a_full_disk_leaves_the_old_checkpoint_and_names_path_and_space(small_disk):
    path = small_disk / "step=00000001.ckpt"
    checkpoint_file.write_atomically({"state_dict": {"w": torch.ones(10_000)}}, path)
    before = path.read_bytes()
    large = {"state_dict": {"w": torch.ones(1_000_000)}}
    with pytest.raises(checkpoint_file.CheckpointError) as caught:
        checkpoint_file.write_atomically(large, path)
    message = str(caught.value)
    assert str(path) in message
    assert "No space left on device" in message or "File too large" in message
    assert re.search(r"\d\.\d MB are free in ", message)
    assert path.read_bytes() == before
    assert os.listdir(small_disk) == [path.name]
    assert store.read(path)["state_dict"]["w"].sum() == 10_000


def save_for_ever(folder, other_file_system, in_background, begun):
    os.environ["TMPDIR"] = str(other_file_system)
    tempfile.tempdir = None
    plugin = checkpoint_plugin.AtomicCheckpointIO()
    plugin.in_background = in_background
    step = 1
    while True:
        step += 1
        if step == 4:  # saving goes on by itself now
            begun.set()
        content = {"state_dict": {"w": torch.full((500_000,), float(step))}, "global_step": step}
        plugin.save_checkpoint(content, folder / f"step={step:08d}.ckpt")
        for old in list(store.steps(folder).values())[:-2]:
            checkpoint_file.remove(old)


def kill_saves(folder, other_file_system, count, in_background):
    """Kills ``count`` processes that do nothing but save; returns how many left a torn file."""
    random.seed(count)
    first = {"state_dict": {"w": torch.ones(500_000)}, "global_step": 1}
    checkpoint_file.write_atomically(first, folder / "step=00000001.ckpt")
    torn = 0
    context = multiprocessing.get_context("fork")
    for _ in range(count):
        begun = context.Event()
        arguments = (folder, other_file_system, in_background, begun)
        process = context.Process(target=save_for_ever, args=arguments)
        process.start()
        assert begun.wait(120)
        time.sleep(random.uniform(0.005, 0.06))
        process.kill()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        path = store.newest(folder)
        content = store.read(path)
        assert float(content["state_dict"]["w"][0]) == content["global_step"]
        torn += len(store.remove_leftovers(folder))
    assert not list(folder.glob(".step*"))
    return torn


@pytest.mark.parametrize("in_background", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_during_saves_leave_a_valid_checkpoint(tmp_path, other_disk, count, in_background):
    assert os.stat(tmp_path).st_dev != os.stat(other_disk).st_dev
    torn = kill_saves(tmp_path, other_disk, count, in_background)
    assert torn >= count // 10, "too few of the kills came during a save"
