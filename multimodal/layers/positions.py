"""Position tables: which row is added to which token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sincos_positions(grid: Sequence[int], width: int) -> Tensor:
    """Fixed sine and cosine positions of a grid, row by row.

    Every dimension of the grid has its share of the width, half sines and half cosines, at
    frequencies from 1 down to nearly 1/10000 (Vaswani et al. 2017, section 3.5; in two dimensions
    as Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers").

    Args:
        grid: tokens per dimension, e.g. ``(14, 14)``.
        width: W, a multiple of twice the number of dimensions.

    Returns:
        float32 ``[N, W]``, N the product of the grid.

    Raises:
        ValueError: when the width cannot be shared out.
    """
    if width % (2 * len(grid)):
        raise ValueError(
            f"width={width}: sin-cos positions on a grid of {len(grid)} dimensions need "
            f"a multiple of {2 * len(grid)}"
        )
    count = width // (2 * len(grid))
    frequencies = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
    steps = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    parts = []
    for step in steps:
        angles = step.flatten()[:, None] * frequencies
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1).float()
