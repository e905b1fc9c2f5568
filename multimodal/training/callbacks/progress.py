"""Progress of a run: a bar, or plain lines."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from multimodal.core.batch import Batch


class StepAxis(pl.Callback):
    """Logs a validation at the optimizer step that it follows; Lightning takes the one before."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning reads the step of a table row from a metric of this name."""
        if not trainer.sanity_checking:
            pl_module.log("step", float(trainer.global_step))


class ProgressBar(pl.Callback):
    """Loss, samples per second and time left: a bar on a terminal, plain lines elsewhere.

    Args:
        every_n_steps: optimizer steps between two updates (the loss is read from the device then).
        plain_every_s: seconds between two lines if the output is not a terminal.
    """

    def __init__(self, every_n_steps: int, plain_every_s: float) -> None:
        self.every_n_steps = every_n_steps
        self.plain_every_s = plain_every_s
        self._bar: Progress | None = None
        self._task: Any = None
        self._samples = 0
        self._since = self._printed = self._started = 0.0
        self._first_step = 0
        self._total: int | None = None

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar."""
        self._since = self._printed = self._started = time.monotonic()
        self._first_step = trainer.global_step
        self._samples = 0
        self._total = _total(trainer)
        console = Console(file=sys.stderr)
        if console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "training", total=self._total, completed=trainer.global_step, state=""
            )

    @rank_zero_only
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Counts samples; every few steps shows loss, speed and time left."""
        self._samples += len(batch) * trainer.world_size
        step, total = trainer.global_step, self._total
        if step % self.every_n_steps and step != total:
            return
        now = time.monotonic()
        plain_due = now - self._printed >= self.plain_every_s or step == total
        if self._bar is None and not plain_due:
            return
        loss = float(outputs["loss"]) if isinstance(outputs, dict) else float(outputs)
        speed = self._samples / max(now - self._since, 1e-9)
        state = f"loss {loss:.3f}  {speed:,.0f} samples/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, state=state)
        else:
            left = ""
            if total:
                done = max(step - self._first_step, 1)
                seconds = (now - self._started) / done * (total - step)
                left = f"  {seconds / 60:.1f} min left"
            print(f"step {step}/{total or '?'}  {state}{left}", file=sys.stderr, flush=True)
            self._printed = now
        self._samples, self._since = 0, now

    @rank_zero_only
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Closes the bar, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _total(trainer: pl.Trainer) -> int | None:
    steps = trainer.estimated_stepping_batches
    return int(steps) if steps != float("inf") else None
