"""A moving average of the weights, for evaluation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from multimodal.core.distributed import is_split
from multimodal.inference.checkpoint.weights import STATE


class WeightAverage(pl.Callback):
    """Keeps an exponential moving average of the trained weights (Polyak and Juditsky 1992).

    Validation, the evaluation in training and the one at the end use it, and so does anyone who
    loads the checkpoint; training continues with the weights themselves. A checkpoint holds both.
    Frozen parameters, queues and statistics are not averaged.

    Args:
        decay: in [0, 1), the share that a step keeps, once warm.
        warmup: whether the decay grows as (1 + n) / (10 + n) with the steps n, up to ``decay``: a
            short run does not drag its beginning along.
        evaluate: whether it is evaluated in place of the weights; false: it is kept and saved only.
    """

    def __init__(self, decay: float, warmup: bool = True, evaluate: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay={decay} must be in [0, 1)")
        self.decay = decay
        self.warmup = warmup
        self.evaluate = evaluate
        self.steps = 0
        self.average: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}  # the weights themselves while the average is in use
        self._swapped: list[tuple[str, Tensor]] = []  # what has it; sharded, not what is gathered
        self._seen_step = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts from the current weights, unless a checkpoint has provided an average."""
        parameters = trained(pl_module)
        begun = {n: p.detach().float().clone() for n, p in parameters if n not in self.average}
        known = {**self.average, **begun}  # of a tower that was frozen, its weights
        self.average = {name: _as(known[name], parameter) for name, parameter in parameters}
        _tell("validation and evaluation use", self.evaluate)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts at the step that the run was resumed from."""
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
        for name, parameter in trained(pl_module):
            self.average[name].lerp_(parameter.detach().float(), 1 - decay)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swaps the average in."""
        if trainer.training or trainer.state.fn == "fit":
            self._swap_in(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swaps the weights back."""
        self._swap_out(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the average in the model, for the evaluation of the run."""
        self._swap_in(pl_module)
        _tell("the evaluation of the run uses", self.evaluate)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves the average beside the weights, which are those that learn, whenever it is."""
        # A tower that modalities share has its weights in a state dict by each of their names.
        first = {id(parameter): name for name, parameter in trained(pl_module)}
        average = {name: tensor.cpu() for name, tensor in self.average.items()}  # or rank's part
        names = {
            name: first[id(parameter)]
            for name, parameter in pl_module.named_parameters(remove_duplicate=False)
            if id(parameter) in first
        }
        checkpoint[STATE] = {name: average[same] for name, same in names.items()}
        checkpoint["ema_steps"] = self.steps
        kept = {name: tensor.clone() for name, tensor in self._kept.items()}
        checkpoint["state_dict"].update({n: kept[same] for n, same in names.items() if kept})

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the average; parameters without one start from their weights."""
        if STATE in checkpoint:
            self.average = {name: t.clone() for name, t in checkpoint[STATE].items()}
            # Sharded weights are loaded late, after the fit has started.
            for name, parameter in trained(pl_module):
                if name in self.average and is_split(parameter):
                    self.average[name] = _as(self.average[name], parameter)
            self.steps = checkpoint["ema_steps"]

    @contextmanager
    def in_use(self, pl_module: pl.LightningModule) -> Iterator[None]:
        """Within, the average replaces the weights."""
        self._swap_in(pl_module)
        try:
            yield
        finally:
            self._swap_out(pl_module)

    @torch.no_grad()
    def _swap_in(self, pl_module: pl.LightningModule) -> None:
        if self._kept or not self.evaluate:
            return
        self._swapped = trained(pl_module)
        for name, parameter in self._swapped:
            self._kept[name] = parameter.detach().clone()
            parameter.copy_(self.average[name])

    @torch.no_grad()
    def _swap_out(self, pl_module: pl.LightningModule) -> None:
        for name, parameter in self._swapped:
            parameter.copy_(self._kept[name])
        self._kept, self._swapped = {}, []


def _as(value: Tensor, parameter: Tensor) -> Tensor:
    """``value`` where ``parameter`` is, and each rank's part of it where that is sharded."""
    if is_split(parameter) and not is_split(value):
        from multimodal.training.strategies import fsdp  # and sympy with it: only where used

        sharded: Tensor = fsdp.shard_like(value, parameter)
        return sharded
    return value.to(parameter.device)


@rank_zero_only
def _tell(who: str, average: bool) -> None:
    used = "the moving average of the weights" if average else "the weights, not their average"
    print(f"{who} {used} (callbacks.ema.evaluate={str(average).lower()})", file=sys.stderr)


def trained(pl_module: pl.LightningModule) -> list[tuple[str, Tensor]]:
    """The parameters that are trained, by name."""
    return [(name, p) for name, p in pl_module.named_parameters() if p.requires_grad]
