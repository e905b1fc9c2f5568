"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """Evolved sign momentum (Chen et al. 2023, arXiv:2302.06675, algorithm 2).

    Half of AdamW's state. Every entry moves by the same amount, so the rate is to be 3 to 10 times
    smaller than AdamW's and the decay as many times larger (section 5 there).

    Args:
        params: parameters or groups.
        lr: above 0.
        betas: of the direction and of the momentum, each in [0, 1).
        weight_decay: decoupled; 0 or more.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"optimizer.lr={lr} must be above 0")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"optimizer.betas={list(betas)}: expected two numbers in [0, 1)")
        if weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay={weight_decay} must be 0 or more")
        defaults = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step; the kernels of a group run over all its tensors at once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_grad = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if with_grad:
                self._step(group, with_grad)
        return loss

    def _step(self, group: dict[str, Any], pairs: list[tuple[Tensor, Tensor]]) -> None:
        direction, momentum = group["betas"]
        parameters, grads = [p for p, _ in pairs], [grad for _, grad in pairs]
        for parameter in parameters:
            if "exp_avg" not in self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
        averages = [self.state[p]["exp_avg"] for p in parameters]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        update = torch._foreach_lerp(averages, grads, 1 - direction)
        torch._foreach_add_(parameters, torch._foreach_sign(update), alpha=-group["lr"])
        torch._foreach_lerp_(averages, grads, 1 - momentum)
