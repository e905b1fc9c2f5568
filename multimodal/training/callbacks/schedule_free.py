"""The averaged weights of a schedule-free optimizer, wherever weights are used."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from multimodal.training.callbacks.ema import WeightAverage, trained
from multimodal.training.optimizers.schedule_free import ScheduleFreeAdamW


class ScheduleFreeWeights(WeightAverage):
    """Validation, evaluation and a checkpoint's users get x; training goes on at y.

    The optimizer holds what x is computed from, so nothing else is stored or restored.
    """

    def __init__(self) -> None:
        super().__init__(decay=0.0)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing: the optimizer begins the average."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any
    ) -> None:
        """Nothing: the optimizer's step has moved the average."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves x beside the weights that learn."""
        self._refresh(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Nothing: the optimizer's state is restored by the trainer."""

    def _swap_in(self, pl_module: pl.LightningModule) -> None:
        self._refresh(pl_module)
        super()._swap_in(pl_module)

    def _refresh(self, pl_module: pl.LightningModule) -> None:
        """Computes x, unless it is in the place of the weights right now."""
        if self._kept:
            return
        optimizers = pl_module.trainer.optimizers
        assert len(optimizers) == 1
        optimizer = optimizers[0]
        assert isinstance(optimizer, ScheduleFreeAdamW)
        averages = optimizer.averages()
        self.average = {name: averages[p] for name, p in trained(pl_module)}
