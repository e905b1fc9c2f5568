"""Held-out evaluation during training, at steps or epochs, into the run's loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pytorch_lightning as pl
import torch

from multimodal.training.callbacks.ema import WeightAverage

PREFIX = "eval"


class PeriodicEvaluation(pl.Callback):
    """Calls ``evaluate`` every so often, on all ranks, and logs the metrics as `eval/...`.

    Training is not affected: random states and the towers' modes are restored. If the run keeps a
    moving average of the weights, that is evaluated.

    Args:
        evaluate: called with the training module; name -> figure, equal on all ranks.
        every: steps or epochs between two evaluations.
        unit: ``steps`` of the optimizer, or ``epochs``.
    """

    def __init__(
        self,
        evaluate: Callable[[pl.LightningModule], Mapping[str, float]],
        every: int,
        unit: str,
    ) -> None:
        if every < 1 or unit not in ("steps", "epochs"):
            raise ValueError(
                f"evaluation.every={every} and unit={unit!r}: expected at least 1 of 'steps' or "
                "'epochs'"
            )
        self.evaluate = evaluate
        self.every = every
        self.unit = unit
        self._done_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Does not repeat the evaluation of the step that the run was resumed from."""
        self._done_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any
    ) -> None:
        """Evaluates when an optimizer step has just been taken whose number is a multiple."""
        if self.unit == "steps" and trainer.global_step % self.every == 0:
            self._run(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluates when an epoch has ended whose number is a multiple, or that was cut short."""
        if self.unit == "epochs" and (trainer.current_epoch + 1) % self.every == 0:
            self._run(trainer, pl_module)

    def _run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == self._done_step:
            return
        self._done_step = trainer.global_step
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        averages = [c for c in _callbacks(trainer) if isinstance(c, WeightAverage)]
        with torch.random.fork_rng(devices=devices), ExitStack() as weights:
            for average in averages:
                weights.enter_context(average.in_use(pl_module))
            figures = self.evaluate(pl_module)
        named = {f"{PREFIX}/{name}": value for name, value in figures.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step)
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in named.items()})


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]
