"""Reproducible selection: hashes as random numbers, and top-k with ties by candidate id."""

from __future__ import annotations

import torch
from torch import Tensor


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
