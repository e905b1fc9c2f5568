"""The share of a step that training waits for its data."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl


class DataWait(pl.Callback):
    """Logs ``train/data_wait``: of the time since the last logged step, the share spent waiting.

    Time is the training process's own. On a GPU the work of earlier steps may still be running, so
    that a small share does no harm there; one that does not fall with more ``data.num_workers``
    says that reading or decoding is too slow.
    """

    def __init__(self) -> None:
        self._waited = self._total = 0.0
        self._end: float | None = None
        self._start = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is here."""
        self._start = time.perf_counter()
        if self._end is not None:
            self._waited += self._start - self._end

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """The step is done; its share is ready for the module's log."""
        now = time.perf_counter()
        self._total += now - (self._start if self._end is None else self._end)
        self._end = now
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0 and self._total > 0:
            share = {"train/data_wait": self._waited / self._total}
            metrics: Any = getattr(pl_module, "host_metrics", None)
            if metrics is not None:
                metrics.update(share)  # in one row with the step's other values
            else:
                for logger in trainer.loggers:
                    logger.log_metrics(share, step=trainer.global_step)
            self._waited = self._total = 0.0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation does not count as waiting."""
        self._end = None
