"""A worker, a rank or the disk fails: a clear end in bounded time, or the training continues."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from experiment_helpers import losses, run_training, write_sensor_shards
from rank_helpers import FAST, Ranks, callback

from multimodal.inference.checkpoint import store
from multimodal.training.failures import explain

LONG = ("trainer.max_steps=100000", "callbacks.checkpoint.every_n_train_steps=2")
OWN = ("allowed_packages=[fault_callbacks]",)
LIMIT = 90.0  # seconds to the end: hard, also where the machine is busy


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ends_within(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.quick
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "a DataLoader worker died"),
        pytest.param(signal.SIGSTOP, "a DataLoader worker hangs", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies_or_hangs_ends_the_run(shards, tmp_path, number, message):
    problem = callback("SignalWorker", folder=str(tmp_path), number=int(number))
    limit = 15 if number == signal.SIGSTOP else 300  # a worker that only has no core is patient
    words = [*LONG, problem, "data.num_workers=1", f"+data.worker_timeout_s={limit}"]
    with Ranks(words, tmp_path, shards, world_size=1) as run:
        run.wait_for("worker")
        assert run.codes(LIMIT) == [1], run.output()
        output = run.outputs[0].read_text()  # whole: the explanation stands before the traceback
        assert message in output
        assert "same command and resume=auto" in output
    worker = int((tmp_path / "worker").read_text())
    assert ends_within(lambda: not is_alive(worker), 60)
    assert store.newest(tmp_path / "checkpoints") is not None


def test_a_rank_that_dies_ends_the_others(shards, tmp_path):
    kill = callback("Kill", folder=str(tmp_path), step=3, rank=1)
    with Ranks([*LONG, kill], tmp_path, shards) as run:
        codes = run.codes(180 + LIMIT)
        assert (tmp_path / "killed").exists()
        assert codes[1] == -signal.SIGKILL, run.output()
        assert codes[0] == 1, run.output()
        assert "another rank has exited or is unreachable" in run.outputs[0].read_text()
    assert store.newest(tmp_path / "checkpoints").name == "step=00000002.ckpt"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_takes_those_with_it_that_the_first_has_started(shards, tmp_path, rank):
    kill = callback("Kill", folder=str(tmp_path), step=4, rank=rank)
    note = callback("SlowSteps", folder=str(tmp_path), seconds=0.0)
    words = ["+experiment=sensor", *FAST, *LONG, *OWN, kill, note, f"hydra.run.dir={tmp_path}"]
    words += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    words += ["trainer.precision=32-true"]
    path = (
        str(Path(__file__).parents[1] / "helpers") + os.pathsep + os.environ.get("PYTHONPATH", "")
    )
    done = run_training(words, shards, timeout=240, PYTHONPATH=path)
    assert (tmp_path / "killed").exists()
    assert done.returncode == (-signal.SIGKILL if rank == 0 else 1), done.stderr[-3000:]
    output = "rank 1 " if rank else "another rank has exited"
    assert output in done.stderr
    other = int((tmp_path / f"step_{1 - rank}").read_text())
    assert ends_within(lambda: not is_alive(other), 120)


@pytest.mark.quick
def test_a_full_disk_does_not_end_the_training(shards, small_disk, tmp_path):
    fill = callback("FillDisk", folder=str(small_disk), step=3, until=5)
    words = ["trainer.max_steps=6", "callbacks.checkpoint.every_n_train_steps=2", fill]
    words += ["callbacks.checkpoint.keep_last=1", f"hydra.run.dir='{small_disk}'"]
    with Ranks(words, tmp_path, shards, world_size=1) as run:
        assert run.codes(240) == [0], run.output()
        output = run.output()
    failed = small_disk / "checkpoints" / "step=00000004.ckpt"
    assert f"WARNING: cannot save {failed}: " in output
    assert re.search(r"\d\.\d MB are free in ", output)
    assert "continuing without this checkpoint" in output
    assert list(store.steps(small_disk / "checkpoints")) == [6]
    assert store.read(small_disk / "checkpoints" / "step=00000006.ckpt")
    assert sorted(losses(small_disk)) == [1, 2, 3, 4, 5, 6]


def test_a_disk_that_stays_full_leaves_the_previous_checkpoint_and_the_run_fails(
    shards, small_disk, tmp_path
):
    fill = callback("FillDisk", folder=str(small_disk), step=3, until=99)
    words = ["trainer.max_steps=4", "callbacks.checkpoint.every_n_train_steps=2", fill]
    words += [f"hydra.run.dir='{small_disk}'"]
    with Ranks(words, tmp_path, shards, world_size=1) as run:
        assert run.codes(240) == [1], run.output()
        assert "the last checkpoint (step 4) is not saved" in run.output()
    assert list(store.steps(small_disk / "checkpoints")) == [2]
    assert store.read(small_disk / "checkpoints" / "step=00000002.ckpt")


@pytest.mark.quick
def test_other_errors_are_not_explained():
    assert explain(ValueError("Connection closed by peer")) is None
    assert explain(RuntimeError("shapes differ")) is None
