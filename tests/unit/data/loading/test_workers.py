from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.util import _finalizer_registry
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from abandoned_loaders import KINDS
from data_helpers import number_samples, write_source
from torch.utils.data import Dataset

from multimodal.data.datamodule import MultimodalDataModule
from multimodal.data.loading import forked, workers
from multimodal.data.loading.workers import Steps, end_iteration, end_workers, make_loader
from multimodal.data.settings import LoaderSettings
from multimodal.data.source import Source
from multimodal.data.transforms.array import ArrayTransform


@pytest.fixture(autouse=True)
def _no_workers_of_other_tests():
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


@pytest.mark.parametrize(
    ("cores", "devices", "local", "expected"),
    [(1, 0, "1", 0), (8, 0, "1", 7), (8, 2, "1", 3), (8, 0, "4", 1), (2, 4, "4", 0)],
)
def test_workers_are_the_cores_less_those_that_train(monkeypatch, cores, devices, local, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert workers.default_num_workers() == expected


def ends_of_processes(folder, repeats, *kinds):
    """What is left of processes that end while loaders of these kinds are in mid-iteration."""
    program = Path(__file__).parents[3] / "helpers" / "abandoned_loaders.py"
    with tempfile.TemporaryDirectory() as temporary:  # short enough for sockets
        done = subprocess.run(
            [sys.executable, program, folder, str(repeats), *kinds],
            capture_output=True, text=True, timeout=240 + 90 * repeats, check=True,
            env={**os.environ, "TMPDIR": temporary},
        )  # fmt: skip
        assert not any(name.startswith("pymp-") for name in os.listdir(temporary))
    assert done.stderr == ""
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ends) == repeats
    return ends


def test_a_process_ends_silently_with_its_workers(tmp_path):
    for end in ends_of_processes(tmp_path, 1, *KINDS):
        assert (end["status"], end["stderr"], end["left"]) == (0, "", [])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_processes_end_silently_with_their_workers(tmp_path, kind):
    for end in ends_of_processes(tmp_path, 40, kind):
        assert (end["status"], end["stderr"], end["left"]) == (0, "", [])


class Numbers(Dataset):
    """The number of the step; a slow one is never ready."""

    def __init__(self, slow=-1):
        self.slow = slow

    def __getitem__(self, step):
        if step == self.slow:
            time.sleep(1000)
        return step


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_that_hang_are_ended_at_once(monkeypatch, persistent):
    def no_request(*_):
        raise AssertionError("waits for a worker that does not answer")

    loader = make_loader(Numbers(slow=3), Steps(range(9)), LoaderSettings(2), persistent)
    iterator = iter(loader)
    assert [next(iterator), next(iterator)] == [0, 1]
    monkeypatch.setattr(type(iterator), "_mark_worker_as_unavailable", no_request)
    if persistent:
        end_workers(loader)
    else:
        del iterator
    assert not multiprocessing.active_children()


def test_a_dead_worker_is_an_error_of_the_next_batch_and_of_nothing_else():
    iterator = iter(make_loader(Numbers(), Steps(range(99)), LoaderSettings(2), persistent=True))
    assert next(iterator) == 0
    dead = multiprocessing.active_children()[0]
    os.kill(dead.pid, signal.SIGKILL)
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    sum(range(1000))  # in which torch would raise
    with pytest.raises(RuntimeError, match="killed by signal: Killed"):
        for _ in iterator:  # those that came before their turn are not waited for
            pass
    end_iteration(iterator)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("handler", [True, False])
def test_a_worker_that_dies_while_a_batch_is_awaited_interrupts_it(handler):
    iterator = iter(make_loader(Numbers(slow=0), Steps(range(9)), LoaderSettings(1), False))
    before = signal.getsignal(signal.SIGCHLD)
    if not handler:  # as Lightning leaves it behind a training
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    (worker,) = multiprocessing.active_children()
    threading.Timer(0.5, worker.kill).start()
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|killed by signal"):
        next(iterator)
    signal.signal(signal.SIGCHLD, before)


def test_no_worker_outlives_training(tmp_path):
    write_source(tmp_path, {"train": [number_samples(40)]}, "numbers")
    source = Source(str(tmp_path / "numbers.json"), {"x": {"member": "x.npy"}})
    data = MultimodalDataModule(
        {"numbers": source}, {"x": ArrayTransform([1])}, batch_size=4, num_workers=1, seed=0
    )

    class Module(pl.LightningModule):
        def training_step(self, batch, index):
            assert multiprocessing.active_children()
            return self.weight(batch.inputs["x"]).sum()

        def configure_model(self):
            self.weight = torch.nn.Linear(1, 1)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = pl.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(Module(), datamodule=data)
    assert trainer.global_step == 3
    assert not multiprocessing.active_children()


LOCKED = {"births": 0}  # processes that shall hang before their first line of Python


def _hang_at_birth() -> None:
    if LOCKED["births"]:
        time.sleep(1000)


def test_a_process_that_is_forked_while_a_lock_is_held_is_forked_again(monkeypatch, caplog):
    """As under several ranks, where threads of gloo call Python."""
    os.register_at_fork(before=_count_birth, after_in_child=_hang_at_birth)
    monkeypatch.setattr(forked, "_LIMIT_S", 0.3)
    monkeypatch.setitem(LOCKED, "births", 3)  # of which the last one lives
    iterator = iter(make_loader(Numbers(), Steps(range(5)), LoaderSettings(1), False))
    assert list(iterator) == [0, 1, 2, 3, 4]
    assert [r.message for r in caplog.records if "did not start" in r.message] == [
        f"a loading process did not start within 0.3 s; started again ({n} of 5)" for n in (1, 2)
    ]
    assert not multiprocessing.active_children()
    monkeypatch.setitem(LOCKED, "births", 99)
    with pytest.raises(RuntimeError, match=r"no loading process started in 5 attempts"):
        iter(make_loader(Numbers(), Steps(range(5)), LoaderSettings(1), False))
    assert not multiprocessing.active_children()


def _count_birth() -> None:
    LOCKED["births"] = max(0, LOCKED["births"] - 1)


class Tensors(Numbers):
    """Their memory is fetched from the process that made them."""

    def __getitem__(self, step):
        return torch.full((3,), step)


def test_a_worker_that_stops_with_batches_ready_is_given_up():
    loader = make_loader(Tensors(), Steps(range(99)), LoaderSettings(1, worker_timeout_s=1.0), True)
    iterator = iter(loader)
    assert next(iterator)[0] == 0
    (worker,) = multiprocessing.active_children()
    time.sleep(0.5)  # in which it gets ahead
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(RuntimeError, match=r"DataLoader timed out after 1\.0 seconds"):
        for _ in iterator:
            pass
    end_iteration(iterator)
    assert not multiprocessing.active_children()


def test_processes_start_beside_many_open_files():
    """`select` takes no descriptor above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"at most {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        loader = make_loader(Numbers(), Steps(range(3)), LoaderSettings(1), False)
        assert list(loader) == [0, 1, 2]
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def _no_folder_of_sockets(monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", None)


@pytest.mark.usefixtures("_no_folder_of_sockets")
def test_tensors_are_fetched_also_where_the_temporary_folder_has_a_long_path(monkeypatch, tmp_path):
    """A socket's path has at most 107 bytes; the temporary folders of clusters have more."""
    folder = tmp_path / ("j" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    loader = make_loader(
        Tensors(), Steps(range(3)), LoaderSettings(1, worker_timeout_s=10.0), False
    )
    assert [int(batch[0]) for batch in loader] == [0, 1, 2]
    assert tempfile.tempdir == str(folder)
    assert not any(folder.iterdir())
    monkeypatch.setattr(forked, "_SHORT_FOLDERS", ())
    multiprocessing.current_process()._config["tempdir"] = None
    with pytest.raises(RuntimeError, match=r"j{100} has too long a path .* set TMPDIR to"):
        next(iter(loader))


@pytest.mark.usefixtures("_no_folder_of_sockets")
def test_a_folder_of_sockets_that_was_tidied_away_is_made_again():
    loader = make_loader(
        Tensors(), Steps(range(3)), LoaderSettings(1, worker_timeout_s=10.0), False
    )
    folders = set()
    for _ in range(2):
        assert [int(batch[0]) for batch in loader] == [0, 1, 2]
        folders.add(multiprocessing.current_process()._config["tempdir"])
        shutil.rmtree(max(folders, key=os.path.isdir))
    assert len(folders) == 2
    ends = [each for each in _finalizer_registry.values() if each._args[0] in folders]
    assert len(ends) == 2
    for end in ends:
        end()  # as at the end of Python; raises nothing


class Unsendable(Numbers):
    def __getitem__(self, step):
        return (lambda: None) if step == 1 else step


def test_a_batch_that_cannot_be_sent_is_an_error_of_who_awaits_it():
    """Python prints it in the loading process, and its reader waits for ever."""
    settings = LoaderSettings(1, worker_timeout_s=10.0)
    iterator = iter(make_loader(Unsendable(), Steps(range(3)), settings, False))
    assert next(iterator) == 0
    with pytest.raises((AttributeError, pickle.PicklingError)) as error:
        next(iterator)
    assert "in a loading process, which could not send a batch" in str(error.value)
    assert next(iterator) == 2
