"""Callbacks that cause a fault, or note what a run did; for runs in processes of their own.

A run takes them by ``allowed_packages=[fault_callbacks]`` and `+callbacks.NAME={_target_: ...}`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytorch_lightning as pl
import torch

from multimodal.training import checkpoint_io


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


class SlowSteps(pl.Callback):
    def __init__(self, folder: str, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step >= 3:
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

        checkpoint_io.torch.save = slow


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
