"""Callbacks that cause a fault, or note what a run did; for runs in processes of their own.

A run takes them by ``allowed_packages=[fault_callbacks]`` and `+callbacks.NAME={_target_: ...}`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytorch_lightning as pl
import torch

from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.training.loggers.wandb import WandbLogger


def touch(folder: str, name: str) -> None:
    Path(folder, name).write_text(str(os.getpid()))


class NoteBatches(pl.Callback):
    """Writes a line per batch and rank: step, sample ids, crops' first pixel."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        first = next(iter(batch.inputs.values()))
        line = {
            "step": trainer.global_step,
            "ids": batch.sample_ids.tolist(),
            "keys": batch.keys,
            "repeats": batch.repeats.tolist(),
            "pixels": float(first.double().sum()),
        }
        with Path(self.folder, f"batches_{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


class Kill(pl.Callback):
    """Kills its rank with -9 in the middle of the batch after ``step`` optimizer steps."""

    def __init__(self, folder: str, step: int, rank: int = 0) -> None:
        self.folder, self.step, self.rank = folder, step, rank

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            touch(self.folder, "killed")
            os.kill(os.getpid(), signal.SIGKILL)


class KillJob(pl.Callback):
    """Kills the whole sweep with -9, once, in the middle of a job; ``job`` is its folder's name."""

    def __init__(self, folder: str, job: str) -> None:
        self.folder, self.job = folder, job

    def on_before_backward(self, trainer, pl_module, loss):
        is_it = Path(trainer.default_root_dir).name == self.job
        if is_it and not Path(self.folder, "killed").exists():
            touch(self.folder, "killed")
            os.kill(os.getpid(), signal.SIGKILL)


class SignalWorker(pl.Callback):
    """Sends a signal to one of the processes that load data, after 3 steps."""

    def __init__(self, folder: str, number: int) -> None:
        self.folder, self.number = folder, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3 and not Path(self.folder, "worker").exists():
            worker = multiprocessing.active_children()[0]
            Path(self.folder, "worker").write_text(str(worker.pid))
            os.kill(worker.pid, self.number)


class KillService(pl.Callback):
    """Kills the process of Weights and Biases with -9, after 3 steps."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            os.kill(wandb_service(), signal.SIGKILL)


class StopService(pl.Callback):
    """Stops the process of Weights and Biases after 3 steps, for ever.

    Then logs a row of ``row_bytes``, more than fit into the socket to it, or nothing.
    """

    def __init__(self, row_bytes: int) -> None:
        self.row_bytes = row_bytes

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            service = wandb_service()
            os.kill(service, signal.SIGSTOP)
            while "State:\tT" not in Path(f"/proc/{service}/status").read_text():
                time.sleep(0.01)
            print(f"stopped {service}", file=sys.stderr)
            (wandb,) = (item for item in trainer.loggers if isinstance(item, WandbLogger))
            if self.row_bytes:
                wandb.log_metrics({"text": "x" * self.row_bytes}, trainer.global_step)


def wandb_service():
    """The number of this process's `wandb-core`."""
    me = str(os.getpid())
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            text = status.read_text()
            if "Name:\twandb-core" in text and f"PPid:\t{me}\n" in text:
                return int(status.parent.name)
    raise LookupError("Weights and Biases has no process here")


class FillDisk(pl.Callback):
    """Leaves no space for a checkpoint from one step to another.

    Where ``folder`` is a file system of its own, it is filled; else no file may grow beyond 16 kB.
    """

    def __init__(self, folder: str, step: int, until: int) -> None:
        self.ballast, self.step, self.until = Path(folder, "ballast"), step, until
        self.limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        own = os.path.ismount(self.ballast.parent)
        if trainer.global_step == self.step:
            if own:
                with contextlib.suppress(OSError), self.ballast.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, self.limit[1]))
        if trainer.global_step == self.until:
            self.ballast.unlink(missing_ok=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, self.limit)


class Fall(pl.Callback):
    """An error in the second batch of the accumulation after ``step`` optimizer steps."""

    def __init__(self, step: int) -> None:
        self.step, self.batches = step, 0

    def on_before_backward(self, trainer, pl_module, loss):
        self.batches += trainer.global_step == self.step
        if self.batches == 2:
            raise OSError("fallen inside an accumulation")


class KillAll(pl.Callback):
    """Kills every rank with -9, in the middle of the batch after ``step`` optimizer steps."""

    def __init__(self, folder: str, step: int) -> None:
        self.folder, self.step = folder, step

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == self.step:
            touch(self.folder, f"killed_{trainer.global_rank}")
            # None dies before all are here: what it has sent might be lost with it.
            end = time.monotonic() + 60
            while len(list(Path(self.folder).glob("killed_*"))) < trainer.world_size:
                assert time.monotonic() < end
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)


class SlowSteps(pl.Callback):
    """Every batch takes ``seconds`` more; leaves a note after ``since`` optimizer steps."""

    def __init__(self, folder: str, seconds: float, since: int = 3) -> None:
        self.folder, self.seconds, self.since = folder, seconds, since

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step >= self.since:
            touch(self.folder, f"step_{trainer.global_rank}")
        time.sleep(self.seconds)


class SlowValidation(pl.Callback):
    def __init__(self, folder: str, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds

    def on_validation_batch_start(self, trainer, pl_module, *arguments):
        touch(self.folder, f"validation_{trainer.global_rank}")
        time.sleep(self.seconds)


class SlowSave(pl.Callback):
    """Every save takes ``seconds`` more, in its middle."""

    def __init__(self, folder: str, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds

    def setup(self, trainer, pl_module, stage):
        original = torch.save

        def slow(content, file, *arguments, **options):
            original(content, file, *arguments, **options)
            touch(self.folder, "saving")
            time.sleep(self.seconds)

        checkpoint_file.torch.save = slow


class NotFinite(pl.Callback):
    """Makes a gradient of one rank NaN at the given steps, where DDP has averaged it already."""

    def __init__(self, folder: str, steps: list[int], rank: int = 0) -> None:
        self.folder, self.steps, self.rank = folder, list(steps), rank

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step in self.steps and trainer.global_rank == self.rank:
            touch(self.folder, f"nan_{trainer.global_step}")
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            gradients[0].fill_(float("nan"))


class NoteWeights(pl.Callback):
    """Writes a digest of all weights before every step: step -> the same on each rank."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        total = [p.detach().double().sum().item().hex() for p in pl_module.parameters()]
        with Path(self.folder, f"weights_{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": trainer.global_step, "sums": total}) + "\n")


class Notify(pl.Callback):
    """Takes keys, as a user's own callback may, and is careless with them."""

    def __init__(self, api_key: str, login: str, password: str = "", url: str = "") -> None:
        self.keys = (api_key, login, password, url)

    def on_train_start(self, trainer, pl_module):
        logging.getLogger(__name__).warning("notifying with %s %s, password: %s, %s", *self.keys)
