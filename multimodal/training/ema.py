"""A moving average of the weights, for evaluation."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

STATE = "ema"  # its key in a checkpoint: name of a trained parameter -> average


class WeightAverage(pl.Callback):
    """Keeps an exponential moving average of the trained weights (Polyak and Juditsky 1992).

    Validation and the evaluation at the end use it; training goes on with the weights themselves.
    A checkpoint holds both. Frozen parameters, queues and statistics are not averaged.

    Args:
        decay: in [0, 1), the share that a step keeps, once warm.
        warmup: whether the decay grows as (1 + n) / (10 + n) with the steps n, up to ``decay``: a
            short run does not drag its beginning along.
    """

    def __init__(self, decay: float, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay={decay} must be in [0, 1)")
        self.decay = decay
        self.warmup = warmup
        self.steps = 0
        self.average: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}  # the weights themselves while the average is in use
        self._seen_step = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins with the weights as they are, unless a checkpoint has brought an average."""
        if not self.average:
            self.average = {n: p.detach().float().clone() for n, p in _trained(pl_module)}
        device = pl_module.device
        self.average = {name: tensor.to(device) for name, tensor in self.average.items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Goes on from the step that the run was resumed from."""
        self._seen_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any
    ) -> None:
        """Moves the average towards the weights, after an optimizer step that was applied."""
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.warmup else self.decay
        for name, parameter in _trained(pl_module):
            self.average[name].lerp_(parameter.detach().float(), 1 - decay)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the average in the place of the weights."""
        if trainer.training or trainer.state.fn == "fit":
            self._swap_in(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the weights back."""
        self._swap_out(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the average in the model, for the evaluation of the run."""
        self._swap_in(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves the average beside the weights, which are those that learn, whenever it is."""
        checkpoint[STATE] = {name: tensor.cpu() for name, tensor in self.average.items()}
        checkpoint["ema_steps"] = self.steps
        checkpoint["state_dict"].update({n: t.clone() for n, t in self._kept.items()})

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes on with the average; one that was not kept begins anew."""
        if STATE in checkpoint:
            self.average = {name: t.clone() for name, t in checkpoint[STATE].items()}
            self.steps = checkpoint["ema_steps"]

    @torch.no_grad()
    def _swap_in(self, pl_module: pl.LightningModule) -> None:
        if self._kept:
            return
        for name, parameter in _trained(pl_module):
            self._kept[name] = parameter.detach().clone()
            parameter.copy_(self.average[name])

    @torch.no_grad()
    def _swap_out(self, pl_module: pl.LightningModule) -> None:
        for name, parameter in _trained(pl_module) if self._kept else []:
            parameter.copy_(self._kept[name])
        self._kept = {}


def _trained(pl_module: pl.LightningModule) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in pl_module.named_parameters() if p.requires_grad]
