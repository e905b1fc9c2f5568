"""Adding and subtracting embeddings: queries put together from several inputs.

Girdhar et al., "ImageBind: One Embedding Space To Bind Them All", CVPR 2023, section 4.4: a
picture plus a sound finds pictures of both. Towers may scale their embeddings differently, so
every term is normalised before it is weighed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_NOTHING = 1e-6


def combine(terms: Sequence[tuple[Tensor, float]]) -> Tensor:
    """The normalised weighted sum of normalised embeddings.

    Args:
        terms: ``[..., D]`` and its weight each; a negative weight takes away. All of one shape.

    Returns:
        ``[..., D]``, of unit norm.

    Raises:
        ValueError: On no term, shapes that differ, or a sum that is nothing: then no direction is
            left to look in.
    """
    shapes = {tuple(vectors.shape) for vectors, _ in terms}
    if len(shapes) != 1:
        raise ValueError(
            f"expected at least one term, all of one shape; got {sorted(shapes) or 'no term'}"
        )
    total = torch.stack([w * functional.normalize(v, dim=-1) for v, w in terms]).sum(dim=0)
    gone = total.norm(dim=-1) < _NOTHING
    if gone.any():
        raise ValueError(
            f"{int(gone.sum())} of the combined queries cancel out to nothing: what is taken away "
            "equals what is there"
        )
    return functional.normalize(total, dim=-1)
