"""Adds and subtracts embeddings: queries composed of several inputs.

Girdhar et al., "ImageBind: One Embedding Space To Bind Them All", CVPR 2023, section 4.4: a
picture plus a sound finds pictures of both. Towers may scale their embeddings differently, so
every term is normalised before it is weighed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_MIN_NORM = 1e-6


def combine(terms: Sequence[tuple[Tensor, float]]) -> Tensor:
    """The normalised weighted sum of normalised embeddings.

    Args:
        terms: ``[..., D]`` and its weight each; a negative weight subtracts. All of one shape.

    Returns:
        ``[..., D]``, of unit norm.

    Raises:
        ValueError: if given no term, shapes that differ, or a zero sum, which has no direction.
    """
    shapes = {tuple(vectors.shape) for vectors, _ in terms}
    if len(shapes) != 1:
        raise ValueError(
            f"expected at least one term, all of one shape; got {sorted(shapes) or 'no term'}"
        )
    total = torch.stack([w * functional.normalize(v, dim=-1) for v, w in terms]).sum(dim=0)
    vanished = total.norm(dim=-1) < _MIN_NORM
    if vanished.any():
        raise ValueError(
            f"{int(vanished.sum())} of the combined queries sum to zero: the subtracted terms "
            "equal the added ones"
        )
    return functional.normalize(total, dim=-1)
