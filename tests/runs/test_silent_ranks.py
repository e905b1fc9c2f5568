"""A rank that is stopped for ever: the others name it and end, and the last checkpoint is whole."""

import signal
import threading
import time

import pytest
import torch.distributed as dist
from experiment_helpers import write_sensor_shards
from rank_helpers import Ranks, callback

from multimodal.inference.checkpoint import store as checkpoint_io
from multimodal.training.strategies import heartbeat
from multimodal.training.strategies.heartbeat import Heartbeat

LONG = ("trainer.max_steps=100000", "callbacks.checkpoint.every_n_train_steps=2")


@pytest.fixture
def store():
    return dist.PrefixStore("p", dist.TCPStore("127.0.0.1", 0, 1, True, wait_for_workers=False))


class Member:
    """A rank: its heartbeat, and how it was ended."""

    def __init__(self, store, rank, world_size, timeout_s):
        self.asked, self.statuses, self.left = 0, [], threading.Event()
        self.heartbeat = Heartbeat(
            store, rank, world_size, timeout_s, lambda: self.asked, self.leave
        )
        self.heartbeat.start()

    def leave(self, status):
        self.statuses.append(status)
        self.heartbeat.stop()
        self.left.set()


@pytest.mark.quick
def test_ranks_that_are_heard_of_are_left_alone(store, capfd):
    members = [Member(store, rank, 3, 30.0) for rank in range(3)]
    assert not members[0].left.wait(3)
    assert all(member.heartbeat.silent(60.0) is None for member in members)
    for member in members:
        member.heartbeat.stop()
    assert [member.statuses for member in members] == [[], [], []]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("asked", "status"), [pytest.param(0, 1, marks=pytest.mark.slow), (signal.SIGTERM, None)]
)
def test_a_silent_rank_is_named_and_the_others_end(store, capfd, monkeypatch, asked, status):
    monkeypatch.setattr(heartbeat, "_GRACE_S", 6.0)
    members = [Member(store, rank, 3, 4.0) for rank in range(3)]
    while any(not beat for beat, _ in members[0].heartbeat._heard.values()):
        time.sleep(0.05)
    members[2].heartbeat.stop()
    members[0].asked = asked
    assert members[0].left.wait(60)
    assert members[0].statuses == [status]
    told = capfd.readouterr().err
    assert "WARNING: rank 2 (process " in told
    assert "(trainer.strategy.timeout_s)" in told
    assert told.splitlines()[-1].startswith("rank 2 (process ")
    assert told.splitlines()[-1].endswith("s: the run ends")
    members[1].heartbeat.stop()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
@pytest.mark.parametrize(("stopped", "asked"), [(1, False), (0, False), (1, True)])
def test_a_rank_that_is_stopped_ends_the_run(shards, tmp_path, trainer, stopped, asked):
    slow = callback("SlowSteps", folder=str(tmp_path), seconds=0.05)
    words = [*LONG, slow, f"trainer={trainer}", "trainer.strategy.timeout_s=60"]
    with Ranks(words, tmp_path, shards) as run:
        run.wait_for(f"step_{stopped}")
        run.signal(stopped, signal.SIGSTOP)
        other, start = run.processes[1 - stopped], time.monotonic()
        if asked:
            run.signal(1 - stopped, signal.SIGTERM)
        status = other.wait(60 + 90)
        seconds = time.monotonic() - start
        told = run.outputs[1 - stopped].read_text()
    assert status == (143 if asked else 1), told
    assert f"rank {stopped} (process {run.processes[stopped].pid} on " in told
    assert seconds < (60 if asked else 120)
    path = checkpoint_io.newest(tmp_path / "checkpoints")
    assert path is not None
    assert checkpoint_io.read(path)["global_step"] >= 2
