"""What all training modules share: the optimizer, and means of what a step measures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from multimodal.distributed import all_reduce_sum, world_size
from multimodal.training.optim import clip_towers, parameter_groups, scale_rates
from multimodal.types import Batch


class TrainingModule(pl.LightningModule):
    """Base of the training modules.

    Args:
        optimizer: called with parameter groups, returns the optimizer.
        scheduler: called with the optimizer, returns a schedule stepped once per optimizer step;
            None for a constant learning rate.
        weight_decay: of the parameters that decay.
    """

    def __init__(
        self,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        weight_decay: float,
    ) -> None:
        super().__init__()
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._weight_decay = weight_decay
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self.host_metrics: dict[str, float] = {}  # by callbacks, logged with the step's own

    def optimizer_made(self, optimizer: Optimizer) -> None:
        """Called with the optimizer when it is made; for hooks."""

    def configure_optimizers(self) -> Any:
        """The optimizer over the trainable parameters, and its schedule by optimizer step."""
        optimizer = self._make_optimizer(parameter_groups(self, self._weight_decay))
        scale_rates(optimizer)
        self.optimizer_made(optimizer)
        if self._make_scheduler is None:
            return optimizer
        schedule = {"scheduler": self._make_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """The run's clipping, except for towers that have a norm of their own."""
        rest = clip_towers(self)
        if len(rest) == sum(p.grad is not None for p in self.parameters()):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(rest, gradient_clip_val)

    def accumulate(self, metrics: Mapping[str, Tensor]) -> None:
        """Adds a step's scalars to the means that will be logged; the same names on all ranks."""
        # On the device and without a synchronisation: floats are read once per logged step.
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] += 1

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs the means since the last logged step, every ``trainer.log_every_n_steps``."""
        step = self.trainer.global_step
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._counts and every and step % every == 0:
            means = self.interval_means()
            means.update(self.host_metrics)
            means["train/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
            for logger in self.trainer.loggers:
                logger.log_metrics(means, step=step)
            self.trainer.callback_metrics.update(
                {name: torch.tensor(value) for name, value in means.items()}
            )

    def interval_means(self) -> dict[str, float]:
        """Means over the steps and ranks since the last call, in sorted order of their names."""
        names = sorted(self._sums)
        means = torch.stack([self._sums[n].float() / self._counts[n] for n in names])
        means = all_reduce_sum(means) / world_size()
        self._sums.clear()
        self._counts.clear()
        return dict(zip(names, means.tolist(), strict=True))
