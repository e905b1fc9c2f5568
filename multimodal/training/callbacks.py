"""What happens around the steps: checkpoints, exact random states, a progress line."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
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

from multimodal.distributed import all_gather_object, world_size
from multimodal.training.checkpoint_io import STEP_NAME
from multimodal.training.loggers import CSVLogger
from multimodal.types import Batch


class Checkpoint(pl.Callback):
    """Saves `step=NNNNNNNN.ckpt` at optimizer steps and at the end, and keeps the last few.

    Args:
        folder: of this run's checkpoints.
        every_n_train_steps: optimizer steps between two checkpoints; null saves at the end only.
        keep_last: how many stay.
        run_config: the resolved configuration as YAML text; goes into every checkpoint.
    """

    def __init__(
        self, folder: str, every_n_train_steps: int | None, keep_last: int, run_config: str
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"callbacks.checkpoint.keep_last={keep_last} must be at least 1")
        self.folder = Path(folder)
        self.every_n_train_steps = every_n_train_steps
        self.keep_last = keep_last
        self.run_config = run_config
        self._saved_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Goes on from the step that the run was resumed from, in the log too."""
        self._saved_step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.rewind(trainer.global_step)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the configuration to whatever is saved."""
        checkpoint["config"] = self.run_config

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any
    ) -> None:
        """Saves when an optimizer step has just been taken whose number is a multiple."""
        step, every = trainer.global_step, self.every_n_train_steps
        if every and step % every == 0 and step != self._saved_step:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the final state, unless the last step did."""
        if trainer.global_step != self._saved_step:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> Path:
        """Writes the checkpoint of the present step (all ranks call it) and removes the oldest."""
        path = self.folder / f"step={trainer.global_step:08d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            ours = sorted(p for p in self.folder.iterdir() if STEP_NAME.match(p.name))
            for old in ours[: -self.keep_last]:
                old.unlink()
        return path


class RandomState(pl.Callback):
    """Saves every rank's random states and restores them before the first resumed step."""

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks, as tensors and plain lists; every rank must call it."""
        version, internal, gauss = random.getstate()
        legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - others use it
        state: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "python": [version, list(internal), gauss],
            "numpy": {
                "key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
                "pos": int(legacy["state"]["pos"]),
                "has_gauss": int(legacy["has_gauss"]),
                "gauss": float(legacy["gauss"]),
            },
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return {"ranks": all_gather_object(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until the first step: setting up a run consumes random numbers."""
        self._pending = state_dict["ranks"]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Restores this rank's states, once."""
        if self._pending is None:
            return
        ranks, self._pending = self._pending, None
        # At another world size there is no exact state to go back to; the seed's own one stands.
        if len(ranks) != world_size():
            return
        state = ranks[trainer.global_rank]
        torch.set_rng_state(state["torch"].cpu())
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        numpy_state = state["numpy"]
        inner = {"key": numpy_state["key"].numpy().astype(np.uint32), "pos": numpy_state["pos"]}
        np.random.set_state(  # noqa: NPY002
            {
                "bit_generator": "MT19937",
                "state": inner,
                "has_gauss": numpy_state["has_gauss"],
                "gauss": numpy_state["gauss"],
            }
        )
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"].cpu())


class ProgressBar(pl.Callback):
    """Loss, samples per second and time left: a bar on a terminal, plain lines elsewhere.

    Args:
        every_n_steps: optimizer steps between two updates (the loss is read from the device then).
        plain_every_s: seconds between two lines where the output is no terminal.
    """

    def __init__(self, every_n_steps: int, plain_every_s: float) -> None:
        self.every_n_steps = every_n_steps
        self.plain_every_s = plain_every_s
        self._bar: Progress | None = None
        self._task: Any = None
        self._samples = 0
        self._since = self._printed = self._started = 0.0
        self._first_step = 0

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar."""
        self._since = self._printed = self._started = time.monotonic()
        self._first_step = trainer.global_step
        self._samples = 0
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
                "training", total=_total(trainer), completed=trainer.global_step, state=""
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
        step, total = trainer.global_step, _total(trainer)
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
