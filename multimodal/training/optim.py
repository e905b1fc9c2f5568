"""Parameter groups of the optimizer: weight decay and learning rate of each parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from multimodal.core.distributed import is_split
from multimodal.core.imports.former import former
from multimodal.models.tower_optim import TowerOptim, depths, no_weight_decay
from multimodal.models.towers import Tower

if not TYPE_CHECKING:
    __getattr__ = former(__name__)


def parameter_groups(
    module: nn.Module, weight_decay: float, split_hidden: bool = False
) -> list[dict[str, Any]]:
    """The trainable parameters, with and without weight decay, in a stable order.

    CLIP (Radford et al. 2021, section 2.5) decays "all weights that are not gains or biases".
    Towers with their own ``rates`` have their own groups; `scale_learning_rates` finishes them.

    Args:
        module: every parameter with ``requires_grad`` is taken; frozen ones stay out.
        weight_decay: the decay of the first group.
        split_hidden: whether the matrices of hidden layers have groups of their own, marked by
            ``hidden: True``, as Muon asks for.

    Returns:
        Groups for a torch optimizer; an empty group is left out.

    Raises:
        ValueError: if nothing is trainable.
    """
    trainable = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(
            "nothing to train: every tower is frozen and every logit scale is fixed; set "
            "`frozen: false` on at least one tower"
        )
    own = tower_optim(module)
    hidden = hidden_matrices(module) if split_hidden else frozenset()
    groups: dict[_Key, dict[str, Any]] = {}
    for name, parameter in trainable:
        rates, scale = own.get(name, (TowerOptim(), 1.0))
        decay = weight_decay if rates.weight_decay is None else rates.weight_decay
        decay = 0.0 if no_weight_decay(name, parameter) else decay
        key = (rates.lr, scale, decay, name in hidden)
        group = groups.setdefault(key, {"params": [], "weight_decay": decay})
        group["params"].append(parameter)
        group |= {"lr_scale": scale} | ({} if rates.lr is None else {"lr": rates.lr})
        group |= {"hidden": name in hidden} if split_hidden else {}
    # The run's own rate first, which is the one that is logged.
    return [groups[key] for key in sorted(groups, key=_rank)]


_Key = tuple[float | None, float, float, bool]  # lr, lr_scale, weight_decay, hidden


def _rank(key: _Key) -> tuple[bool, float, bool, bool]:
    lr, scale, decay, hidden = key
    return lr is not None, -scale, decay == 0, not hidden


def hidden_matrices(module: nn.Module) -> frozenset[str]:
    """Names of the matrices [out, in] that map hidden features to hidden features.

    Not embedding tables, positions, convolutions, nor the heads that end a tower or a task: Muon's
    authors leave those to AdamW.
    """
    ends = tuple(
        f"{path}." for path, part in module.named_modules() if path.rpartition(".")[2] in _ENDS
    )
    return frozenset(
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        if isinstance(part, nn.Linear | nn.MultiheadAttention)
        for name, parameter in part.named_parameters(recurse=False)
        if parameter.ndim == 2 and not f"{path}.".startswith(ends)
    )


_ENDS = ("head", "tasks")


def tower_optim(module: nn.Module) -> dict[str, tuple[TowerOptim, float]]:
    """Parameter name -> its tower's rates and what its depth makes of them.

    Raises:
        ValueError: if a tower has a ``layer_decay`` and its encoder does not expose its layers.
    """
    optim: dict[str, tuple[TowerOptim, float]] = {}
    for path, tower in module.named_modules():
        if isinstance(tower, Tower) and tower.rates is not None:
            decay = tower.rates.layer_decay
            places = (
                depths(tower) if decay != 1 else dict.fromkeys(dict(tower.named_parameters()), 0)
            )
            last = max(places.values())
            prefix = f"{path}." if path else ""
            for name, depth in places.items():
                optim[f"{prefix}{name}"] = (tower.rates, decay ** (last - depth))
    return optim


def names_of_groups(optimizer: Optimizer, module: nn.Module) -> list[list[str]]:
    """The names in ``module`` of the parameters of each of the optimizer's groups."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def scale_learning_rates(optimizer: Optimizer) -> None:
    """Multiplies every group's learning rate by its ``lr_scale``; schedules start from there."""
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)


def own_norms(module: nn.Module) -> list[Tower]:
    """The towers whose gradients are clipped by their own ``max_norm``."""
    towers = [part for part in module.modules() if isinstance(part, Tower)]
    return [tower for tower in towers if tower.rates and tower.rates.max_norm is not None]


def clip_towers(module: nn.Module) -> list[Tensor]:
    """Clips the gradients of the towers that have their own ``max_norm``.

    Returns:
        the parameters of all the others, which the run's own norm is for.
    """
    clipped: set[int] = set()
    for tower in own_norms(module):
        assert tower.rates is not None
        assert tower.rates.max_norm is not None
        parameters = [p for p in tower.parameters() if p.grad is not None]
        nn.utils.clip_grad_norm_(parameters, tower.rates.max_norm)
        clipped |= {id(p) for p in tower.parameters()}
    return [p for p in module.parameters() if id(p) not in clipped and p.grad is not None]


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all ``gradients``; sharded ones count as a whole."""
    split = [gradient for gradient in gradients if is_split(gradient)]
    whole = [g for g in gradients if not is_split(g)] if split else gradients
    norms = [nn.utils.get_total_norm(kind) for kind in (whole, split) if kind]
    norms = [norm.full_tensor() if is_split(norm) else norm for norm in norms]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def clip_sharded_grads(gradients: Sequence[Tensor], limit: float, algorithm: str | None) -> None:
    """Clips gradients of which some are sharded: by their norm, or each ``value``."""
    parts = [g.to_local() if is_split(g) else g for g in gradients]
    if algorithm == "value":
        for part in parts:
            part.clamp_(-limit, limit)
        return
    factor = (limit / (total_norm(gradients) + 1e-6)).clamp(max=1.0)
    for part in parts:
        part.mul_(factor)


def fused(make: Callable[..., Optimizer], forbidden: bool) -> Callable[..., Optimizer]:
    """``make`` with its ``fused: null`` decided: one kernel per group where nothing forbids it.

    Args:
        make: a partial of an optimizer.
        forbidden: whether float16's gradient scaler is used (a fused optimizer would take its
            decision to skip, and then gradients could not be clipped), or some of the weights are
            sharded (one kernel cannot take both kinds).
    """
    given = getattr(make, "keywords", {})
    undecided = "fused" in given and given["fused"] is None
    return partial(make, fused=True) if undecided and not forbidden else make


def was_applied(optimizer: Optimizer) -> bool:
    """Whether the step that ``optimizer`` has just taken moved its parameters; asked in its hook.

    It did not if no parameter had a gradient, or if the gradient scaler of float16 found them not
    finite and left the decision to a fused optimizer.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is not None and bool(found_inf):
        return False
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return any(parameter.grad is not None for parameter in parameters)
