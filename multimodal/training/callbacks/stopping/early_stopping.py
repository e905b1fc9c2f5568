"""Ends a training that no longer gets better."""

from __future__ import annotations

import math
import sys
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from multimodal.training.callbacks.monitored import not_logged


class EarlyStopping(pl.Callback):
    """Ends training after ``patience`` validations without a better score.

    The run then ends as at its last step: one checkpoint, the evaluation, exit status 0. Its count
    is in the checkpoint, so that a resumed run stops where the uninterrupted one would.

    Args:
        patience: validations in a row that may pass without a better score.
        monitor: a metric of the validation; `val/score` is the mean of all of them.
        mode: ``max`` if a higher metric is better, ``min`` if a lower one is.
        min_delta: by how much it has to be better to count.
    """

    def __init__(
        self,
        patience: int = 5,
        monitor: str = "val/score",
        mode: Literal["max", "min"] = "max",
        min_delta: float = 0.0,
    ) -> None:
        if patience < 1:
            raise ValueError(f"callbacks.early_stopping.patience={patience} must be at least 1")
        if not min_delta >= 0:
            raise ValueError(f"callbacks.early_stopping.min_delta={min_delta} must be at least 0")
        self.patience = patience
        self.monitor = monitor
        self.mode = mode
        self.min_delta = min_delta
        self._best = -math.inf  # of the scores, or of their negatives: higher is better
        self._best_step = self._waited = 0

    def state_dict(self) -> dict[str, Any]:
        """The best score, its step, and the validations since."""
        return {"best": self._best, "best_step": self._best_step, "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` saved."""
        self._best, self._best_step = float(state_dict["best"]), int(state_dict["best_step"])
        self._waited = int(state_dict["waited"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses a run without validation, in which it would never act.

        Raises:
            ValueError: if nothing is validated.
        """
        data = getattr(trainer, "datamodule", None)
        if not trainer.enable_validation or not getattr(data, "val_sources", True):
            raise ValueError(
                "callbacks.early_stopping needs a validation: give data.val_sources, and "
                "trainer.limit_val_batches above 0"
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares the score of the step that was validated.

        Raises:
            ConfigError: if the validation logged no such metric.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            raise not_logged("callbacks.early_stopping.monitor", self.monitor, trainer)
        score = float(value) if self.mode == "max" else -float(value)
        if score > self._best + self.min_delta or math.isinf(self._best):
            better = score if not math.isnan(score) else -math.inf
            self._best, self._best_step, self._waited = better, trainer.global_step, 0
        else:
            self._waited += 1
        stop = torch.tensor(self._waited >= self.patience, device=pl_module.device)
        if trainer.strategy.reduce_boolean_decision(bool(stop), all=False):
            trainer.should_stop = True
            self._say(trainer)

    @rank_zero_only
    def _say(self, trainer: pl.Trainer) -> None:
        best = self._best if self.mode == "max" else -self._best
        print(
            f"early stopping at step {trainer.global_step}: {self.monitor} has not been better "
            f"than {best:.4f} (step {self._best_step}) for {self._waited} validations",
            file=sys.stderr,
        )
