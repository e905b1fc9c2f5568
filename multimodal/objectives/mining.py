"""Choice that can be repeated: hashes for random numbers, and top-k with ties by candidate id."""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # of splitmix64, as signed integers


def pair_hash(anchor_ids: Tensor, candidate_ids: Tensor, key: int) -> Tensor:
    """A number for every (anchor, candidate) that looks random and depends on nothing else.

    Args:
        anchor_ids: ``[A]`` int64.
        candidate_ids: ``[C]`` int64.
        key: signed 64-bit integer, for instance of `multimodal.hashing.stable_hash`.

    Returns:
        ``[A, C]`` int64, uniform over the non-negative integers.
    """
    anchors, candidates = _mix(anchor_ids ^ key), _mix(candidate_ids)
    return _shift(_mix(anchors[:, None] ^ candidates), 1)


def _mix(value: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014); integers wrap around."""
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        value = (value ^ _shift(value, shift)) * multiplier
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own copies the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def top(scores: Tensor, among: Tensor, count: int | Tensor, candidate_ids: Tensor) -> Tensor:
    """Marks the ``count`` highest scores of each row; among equals the smaller candidate id wins.

    Args:
        scores: ``[A, C]`` float or integer.
        among: ``[A, C]`` bool; only these are chosen, all of them where there are no more.
        count: one number for all rows, or ``[A]`` int64.
        candidate_ids: ``[C]`` int64.

    Returns:
        ``[A, C]`` bool.
    """
    order = candidate_ids.argsort(stable=True)
    lowest = -torch.inf if scores.is_floating_point() else torch.iinfo(scores.dtype).min
    ranked = scores.masked_fill(~among, lowest)[:, order]
    if isinstance(count, int):
        count = min(count, scores.shape[1])
        if count == 0:
            return torch.zeros_like(among)
        least = ranked.topk(count, dim=1).values[:, -1:]
        wanted = torch.full_like(least, count, dtype=torch.int64)
    else:
        wanted = count[:, None]
        places = (wanted - 1).clamp(min=0, max=scores.shape[1] - 1)
        least = ranked.sort(dim=1, descending=True).values.gather(1, places)
    above, level = ranked > least, ranked == least
    missing = wanted - above.sum(dim=1, keepdim=True)
    chosen = above | (level & (level.cumsum(dim=1) <= missing))
    return chosen[:, order.argsort()] & among
