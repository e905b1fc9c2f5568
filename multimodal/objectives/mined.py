"""Losses over the few hardest negatives: search them first, then compare only with those."""

from __future__ import annotations

import torch
from torch import Tensor

from multimodal.objectives.blocks import BLOCK_ENTRIES, Block, Direction
from multimodal.objectives.contract import Loss, Negatives
from multimodal.objectives.layout import Layout
from multimodal.objectives.margin_losses import Hinge
from multimodal.objectives.negatives import Hard, InBatch
from multimodal.objectives.search import hardest, hardest_both_ways
from multimodal.objectives.view import View

MOST = 64  # negatives per anchor that are worth gathering


def mines(loss: Loss, negatives: Negatives) -> tuple[int, int] | None:
    """How many of the hardest negatives the combination takes, after how many it skips.

    None if it is not a matter of a few of the hardest.
    """
    if isinstance(negatives, Hard) and isinstance(negatives.k, int):
        return (negatives.k, negatives.skip) if negatives.k + negatives.skip <= MOST else None
    if isinstance(negatives, InBatch) and isinstance(loss, Hinge) and loss.hardest:
        return 1, 0
    return None


def mined_directions(
    loss: Loss, sides: tuple[Tensor, Tensor], layout: Layout, view: View, count: int, skip: int
) -> list[Direction]:
    """The directions of a pair over each anchor's positives and hardest negatives.

    Args:
        loss: one of the losses; it decides on one direction or two.
        sides: embeddings ``[N, D]`` of both modalities, of all rows of the batch.
        layout: of the own rows against all rows.
        view: the batch.
        count: negatives per anchor.
        skip: how many of the hardest are left out.
    """
    ways = [(0, sides[0], sides[1]), (1, sides[1], sides[0])]
    ways = ways[:1] if loss.directions == "once" else ways
    if len(ways) == 2 and count + skip == 1 and len(layout.anchors) == len(layout.candidates):
        found = hardest_both_ways(*sides, layout)
    else:
        found = [hardest(rows[view.own], columns, layout, count, skip) for _, rows, columns in ways]
    positives, real_positives = _positive_table(layout)
    directions = []
    for (anchor_side, rows, _), (negatives, real_negatives) in zip(ways, found, strict=True):
        chosen = torch.cat([positives, negatives], dim=1)
        block = _block(loss, real_positives, real_negatives)
        size = max(1, BLOCK_ENTRIES // (4 * chosen.shape[1] * rows.shape[1]))
        directions.append(Direction(anchor_side, view.own, block, size, chosen))
    return directions


def _block(loss: Loss, real_positives: Tensor, real_negatives: Tensor) -> Block:
    def block(
        rows: slice, anchors_AD: Tensor, candidates_AKD: Tensor, scale: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        similarities_AK = (candidates_AKD @ anchors_AD[:, :, None]).squeeze(2)
        positives, negatives = real_positives[rows], real_negatives[rows]
        real = torch.cat([positives, negatives], dim=1)
        log_weights = torch.zeros_like(similarities_AK).masked_fill(~real, -torch.inf)
        positives_AK = torch.cat([positives, torch.zeros_like(negatives)], dim=1)
        # a slot that is no real positive counts as a negative that was dropped
        values = loss(similarities_AK, scale, bias, positives_AK, log_weights)
        return values.sum(), (~negatives.any(dim=1)).sum()

    return block


def _positive_table(layout: Layout) -> tuple[Tensor, Tensor]:
    """The columns of each row's positives side by side ``[A, P]``, and which are real."""
    rows, columns = layout.positive_rows, layout.positive_columns
    counts = torch.bincount(rows, minlength=len(layout.anchors))
    width = int(counts.max()) if len(counts) else 1
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    table = columns.new_zeros(len(counts), width)
    table[rows, place] = columns
    return table, torch.arange(width, device=rows.device) < counts[:, None]
