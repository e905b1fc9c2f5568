"""Position tables: which row is added to which token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


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
        ValueError: if the width cannot be shared out.
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


def resize_positions(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """A learned table for another grid: bicubic in space, linear in time.

    Rows before the grid's (a class token) stay. A grid of one dimension is resized linearly; of
    three, the first is time, and a table without time (two dimensions) is repeated over it.

    Source: Dosovitskiy et al. 2021, section 3.2, for two dimensions.

    Args:
        table: ``[extra + N, W]``, N the product of ``old``.
        old: the grid that the table was learned for.
        new: the grid that is wanted.

    Returns:
        ``[extra + M, W]``, M the product of ``new``, of the same type.

    Raises:
        ValueError: if the table does not fit ``old``, or the grids cannot be matched.
    """
    extra = len(table) - math.prod(old)
    if extra < 0:
        raise ValueError(f"{len(table)} positions are fewer than the grid {list(old)} has")
    if len(old) not in (len(new), len(new) - 1) or (len(new) - len(old) == 1 and len(new) != 3):
        raise ValueError(f"positions of a grid {list(old)} cannot become those of {list(new)}")
    first, rows = table[:extra], table[extra:]
    if len(old) == 2 and len(new) == 3:
        rows, old = rows.repeat(new[0], 1), (new[0], *old)
    if tuple(old) != tuple(new):
        rows = _resize(rows.float(), old, new).to(table.dtype)
    return torch.cat([first, rows])


def _resize(rows: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    width = rows.shape[1]
    if len(old) == 1:
        return F.interpolate(rows.T[None], new[0], mode="linear", align_corners=False)[0].T
    frames = old[0] if len(old) == 3 else 1
    grid = rows.view(frames, *old[-2:], width).permute(0, 3, 1, 2)
    if tuple(old[-2:]) != tuple(new[-2:]):
        grid = F.interpolate(grid, tuple(new[-2:]), mode="bicubic", antialias=True)
    if len(old) == 3 and old[0] != new[0]:
        grid = grid.flatten(1).T[None]
        grid = F.interpolate(grid, new[0], mode="linear", align_corners=False)[0].T
        grid = grid.view(new[0], width, *new[1:])
    return grid.permute(0, 2, 3, 1).reshape(-1, width)
