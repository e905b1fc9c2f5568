"""Fills towers from foreign tensors by the key maps of their plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from multimodal.models.layers.positions import resize_positions
from multimodal.models.pretrained.keys import Diff, is_allowed, require_finite, translate
from multimodal.models.pretrained.plan import Plan, TowerPlan
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.models.tuning import load_plain, plain_state

STEM = "encoder.stem."


def fill_model(
    model: EmbeddingModel,
    plan: Plan,
    state: Mapping[str, Tensor],
    allow: Sequence[str],
    notes: list[str],
) -> Diff:
    """Fills every tower of a model that was built from the plan.

    Args:
        model: its towers are filled where nothing is missing or mismatched.
        plan: of the foreign model.
        state: the foreign tensors.
        allow: names, or patterns, of tensors that may be left over on either side.
        notes: changes made on the way are added.

    Returns:
        unmatched tensors of both sides.

    Raises:
        WeightsError: if a tensor that is used is not finite.
    """
    diff = Diff()
    used = {name for name in (plan.scale, plan.bias) if name is not None and name in state}
    require_finite(state, used, "the pair")
    if plan.scale is not None and plan.scale not in state:
        _record(diff, diff.missing, f"the pair's logit scale <- {plan.scale}", [plan.scale], allow)
    for name, tower_plan in plan.own_towers().items():
        used |= fill_tower(name, model.tower(name), tower_plan, state, diff, notes, allow)
    for name in sorted(set(state) - used - set(plan.ignored)):
        _record(diff, diff.unexpected, f"{name} {list(state[name].shape)}", [name], allow)
    return diff


def fill_tower(
    name: str,
    tower: Tower,
    plan: TowerPlan,
    state: Mapping[str, Tensor],
    diff: Diff,
    notes: list[str],
    allow: Sequence[str] = (),
    part: str = "",
) -> set[str]:
    """Fills one tower; positions are resized to its grid, and a stem's colours summed for grey.

    Args:
        name: of the tower, for messages.
        tower: is filled where nothing is missing or mismatched, under its adapters if it has any.
        plan: of the foreign tower.
        state: the foreign tensors.
        diff: unmatched tensors are added.
        notes: changes made on the way are added.
        allow: names, or patterns, of tensors that may be left over.
        part: ``encoder.`` to fill the encoder alone.

    Returns:
        the foreign names that are used.

    Raises:
        WeightsError: if a tensor that is used is not finite.
    """
    whole = plain_state(tower)
    own = {key: tensor for key, tensor in whole.items() if key.startswith(part)}
    filled, used, absent = translate(own, plan.key_map, state, f"towers.{name}")
    for key, parts in absent:
        wanted = f" <- {' + '.join(parts)}" if parts else ""
        _record(diff, diff.missing, f"{key}{wanted}", [key, *parts], allow)
    _resize(name, tower, plan, filled, notes)
    _sum_colours(name, own, filled, notes)
    for key in [key for key, tensor in filled.items() if tensor.shape != own[key].shape]:
        theirs = plan.key_map[key].names
        shapes = ", ".join(f"{n} {list(state[n].shape)}" for n in theirs)
        entry = f"towers.{name}.{key} {list(own[key].shape)} <- {shapes}"
        _record(diff, diff.mismatched, entry, [f"towers.{name}.{key}", *theirs], allow)
        del filled[key]
    require_finite(state, used, f"towers.{name}")
    load_plain(tower, {**whole, **filled})
    return used


def _record(
    diff: Diff, entries: list[str], entry: str, of: Sequence[str], allow: Sequence[str]
) -> None:
    allowed = any(is_allowed(name, allow) for name in of)
    (diff.allowed if allowed else entries).append(entry)


def _resize(
    name: str, tower: Tower, plan: TowerPlan, filled: dict[str, Tensor], notes: list[str]
) -> None:
    """Positions of another grid, in place."""
    key = "encoder.positions"
    new: tuple[int, ...] = getattr(tower.encoder, "grid", ())
    if key not in filled or not plan.grid or tuple(plan.grid) == tuple(new):
        return
    extra = len(filled[key]) - math.prod(plan.grid)
    if extra != len(tower.state_dict()[key]) - math.prod(new):
        return  # not the table that the plan means: reported as mismatched
    old = "x".join(map(str, plan.grid))
    if len(new) == 1 and new[0] < plan.grid[0]:  # a sequence that ends earlier
        filled[key] = filled[key][: extra + new[0]]
        notes.append(f"{name}: positions cut from {old} to {new[0]}")
        return
    with torch.no_grad():
        filled[key] = resize_positions(filled[key], plan.grid, new)
    if tuple(new[1:]) == tuple(plan.grid):  # repeated over time, as noted by inflation
        return
    how = {1: "linear", 2: "bicubic", 3: "bicubic, linear in time"}[len(new)]
    notes.append(f"{name}: positions resized from {old} to {'x'.join(map(str, new))} ({how})")


def _sum_colours(
    name: str, own: Mapping[str, Tensor], filled: dict[str, Tensor], notes: list[str]
) -> None:
    """A stem of one channel answers as the foreign one does to three equal colours, in place."""
    for key, tensor in filled.items():
        ours, theirs = list(own[key].shape), list(tensor.shape)
        if not key.startswith(STEM) or tensor.ndim < 3:
            continue
        if [theirs[0], 1, *theirs[2:]] == ours and theirs[1] == 3:
            filled[key] = tensor.sum(dim=1, keepdim=True)
            notes.append(f"{name}: {key} summed over the colours, for one channel")
