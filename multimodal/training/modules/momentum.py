"""A copy of towers that follows them slowly."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MomentumCopy(nn.Module):
    """An exponential moving average of a module, for keys that change slowly (He et al. 2020).

    Its ``module`` is called as the original is, under ``torch.no_grad()``.

    Args:
        module: what to follow; its present weights are where the average starts.
        momentum: in [0, 1), the share that an update keeps.
    """

    def __init__(self, module: nn.Module, momentum: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.momentum = momentum

    def train(self, mode: bool = True) -> MomentumCopy:
        """Stays in eval mode: keys are deterministic."""
        return super().train(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the average towards ``module``; call after an optimizer step was applied."""
        for average, current in zip(self.module.parameters(), module.parameters(), strict=True):
            average.lerp_(current.detach().to(average.dtype), 1 - self.momentum)
        for kept, present in zip(self.module.buffers(), module.buffers(), strict=True):
            kept.copy_(present)
