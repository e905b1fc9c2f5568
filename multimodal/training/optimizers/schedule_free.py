"""AdamW without a schedule: the average of the weights takes the place of a decaying rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class ScheduleFreeAdamW(Optimizer):
    """Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682, algorithm 1).

    The parameters are y, where gradients are taken; z takes AdamW's steps; x, their average, is the
    model. `averages` gives x, which validation, evaluation and whoever loads a checkpoint use; the
    callback that does so is added by itself. Use it with ``scheduler=constant``, whose warm-up it
    weighs the average by.

    Args:
        params: parameters or groups.
        lr: above 0; 1 to 10 times that of a cosine.
        betas: the interpolation between z and x, in (0, 1), and AdamW's second moment, in [0, 1).
        eps: above 0.
        weight_decay: at y, decoupled; 0 or more.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"optimizer.lr={lr} must be above 0")
        if len(betas) != 2 or not (0 < betas[0] < 1 and 0 <= betas[1] < 1):
            raise ValueError(
                f"optimizer.betas={list(betas)}: expected one number in (0, 1) and one in [0, 1)"
            )
        if not eps > 0 or weight_decay < 0:
            raise ValueError(
                f"optimizer.eps={eps} must be above 0, optimizer.weight_decay={weight_decay} 0 or "
                "more"
            )
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step of z, averages it into x, and moves the parameters between the two."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(group, parameter)
        return loss

    def _step(self, group: dict[str, Any], y: Tensor) -> None:
        beta, beta2 = group["betas"]
        state = self.state[y]
        if not state:
            state["z"] = y.detach().clone(memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(y)
            # Of each parameter, not of its group: one that is unfrozen later begins anew.
            state |= {"steps": 0, "largest_lr": 0.0, "weight_sum": 0.0}
        state["steps"] += 1
        state["largest_lr"] = max(state["largest_lr"], group["lr"])
        # A step weighs as the square of the largest rate so far: what warms up counts little.
        weight = state["largest_lr"] ** 2
        state["weight_sum"] += weight
        share = weight / state["weight_sum"] if weight else 0.0
        z, square, grad = state["z"], state["exp_avg_sq"], y.grad
        assert grad is not None
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        correction = math.sqrt(1 - beta2 ** state["steps"])
        update = grad / (square.sqrt() / correction).add_(group["eps"])
        update.add_(y, alpha=group["weight_decay"])
        # With x = (y - (1 - beta) z) / beta, x moves by share * (z' - x) and z by -lr * update.
        y.lerp_(z, share)
        y.add_(update, alpha=group["lr"] * (beta * (1 - share) - 1))
        z.sub_(update, alpha=group["lr"])

    @torch.no_grad()
    def averages(self) -> dict[Tensor, Tensor]:
        """x of every parameter: the weights to use. One that has not been trained is itself."""
        return {
            parameter: (
                parameter.detach().lerp(self.state[parameter]["z"], 1 - 1 / group["betas"][0])
                if self.state.get(parameter)
                else parameter.detach().clone()
            )
            for group in self.param_groups
            for parameter in group["params"]
        }
