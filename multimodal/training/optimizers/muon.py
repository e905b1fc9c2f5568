"""Muon for the matrices of hidden layers, AdamW for all else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer

MUON, ADAMW = "muon", "adamw"


class MuonWithAdamW(Optimizer):
    """Orthogonalised momentum for hidden matrices (Jordan et al. 2024, "Muon"), AdamW for the rest.

    `torch.optim.Muon` takes matrices only. This one is made of it and `torch.optim.AdamW`; each
    group says by ``hidden`` whose it is. With ``adjust_lr_fn: match_rms_adamw`` (Liu et al. 2025,
    arXiv:2502.16982, section 2.2) one learning rate serves both.

    Args:
        params: groups; with ``hidden: true`` of matrices [out, in] only. Parameters without a group
            are AdamW's.
        lr: of both; in [0, inf).
        weight_decay: decoupled, of the groups that do not name their own.
        momentum: of Muon, in [0, 1).
        nesterov: Nesterov's momentum in Muon.
        ns_steps: Newton-Schulz iterations.
        adjust_lr_fn: ``match_rms_adamw`` or ``original`` (Jordan's).
        betas: of AdamW.
        eps: of AdamW.

    Raises:
        ValueError: if a number is out of range, or a hidden parameter is not a matrix.
    """

    splits_hidden = True  # asks `parameter_groups` for hidden matrices in groups of their own

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
    ) -> None:
        given = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        muon: dict[str, Any] = {
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        adamw: dict[str, Any] = {"betas": tuple(betas), "eps": eps}
        parts: list[tuple[type[Any], dict[str, Any], list[dict[str, Any]]]] = [
            (Muon, muon, [g for g in groups if g.get("hidden")]),
            (AdamW, adamw, [g for g in groups if not g.get("hidden")]),
        ]
        self._parts: dict[str, Optimizer] = {}
        for kind, own, mine in parts:
            if mine:
                part = kind([dict(g) for g in mine], lr=lr, weight_decay=weight_decay, **own)
                self._parts[MUON if kind is Muon else ADAMW] = part
        made = {name: iter(part.param_groups) for name, part in self._parts.items()}
        # In the order given: what reads the groups of an optimizer knows them by their place.
        ordered = [next(made[MUON if g.get("hidden") else ADAMW]) for g in groups]
        super().__init__(ordered, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, part in self._parts.items():
            # Loading a state replaces both containers: the parts follow them.
            part.param_groups = [
                group for group in self.param_groups if bool(group.get("hidden")) == (name == MUON)
            ]
            part.state = self.state
            part.step()
        return loss
