"""The most similar negatives of every anchor, and losses over those few.

One panel of similarities is held at a time, and no gradient. Candidates are sorted by id, so that
among equals the first one wins. The losses then compare only with what was found.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from multimodal.objectives.gathered_batch import GatheredBatch
from multimodal.objectives.interfaces import Loss, Negatives
from multimodal.objectives.kernels.blockwise import BLOCK_ENTRIES, Direction, RowBlockLoss
from multimodal.objectives.losses.affinity import AffinityLoss
from multimodal.objectives.losses.margin import Hinge
from multimodal.objectives.losses.target import TargetLoss
from multimodal.objectives.matches import PositiveIndex, matches
from multimodal.objectives.negatives.selection import Hard, InBatch

MAX_MINED = 64  # negatives per anchor that are worth gathering


def hardest_k(loss: Loss, negatives: Negatives) -> tuple[int, int] | None:
    """How many of the hardest negatives the combination takes, after how many it skips.

    None if it is not a matter of a few of the hardest.
    """
    if isinstance(loss, TargetLoss | AffinityLoss):  # it reads none
        return None
    if isinstance(negatives, Hard) and isinstance(negatives.k, int):
        return (negatives.k, negatives.skip) if negatives.k + negatives.skip <= MAX_MINED else None
    if isinstance(negatives, InBatch) and isinstance(loss, Hinge) and loss.hardest:
        return 1, 0
    return None


def mined_directions(
    loss: Loss,
    sides: tuple[Tensor, Tensor],
    positive_index: PositiveIndex,
    gathered: GatheredBatch,
    count: int,
    skip: int,
) -> list[Direction]:
    """The directions of a pair over each anchor's positives and hardest negatives.

    Args:
        loss: one of the losses; it decides on one direction or two.
        sides: embeddings ``[N, D]`` of both modalities, of all rows of the batch.
        positive_index: of the own rows against all rows.
        gathered: the batch.
        count: negatives per anchor.
        skip: how many of the hardest are left out.
    """
    passes = [(0, sides[0], sides[1]), (1, sides[1], sides[0])]
    passes = passes[:1] if loss.directions == "once" else passes
    if (
        len(passes) == 2
        and count + skip == 1
        and len(positive_index.anchors) == len(positive_index.candidates)
    ):
        negatives_by_pass = hardest_both_ways(*sides, positive_index)
    else:
        negatives_by_pass = [
            hardest(rows[gathered.local_rows], columns, positive_index, count, skip)
            for _, rows, columns in passes
        ]
    positives, real_positives = _positive_table(positive_index)
    directions = []
    for (anchor_side, rows, _), (negatives, real_negatives) in zip(
        passes, negatives_by_pass, strict=True
    ):
        chosen = torch.cat([positives, negatives], dim=1)
        block = _block(loss, real_positives, real_negatives)
        size = max(1, BLOCK_ENTRIES // (4 * chosen.shape[1] * rows.shape[1]))
        directions.append(Direction(anchor_side, gathered.local_rows, block, size, chosen))
    return directions


def _block(loss: Loss, real_positives: Tensor, real_negatives: Tensor) -> RowBlockLoss:
    def block(
        rows: slice, anchors_AD: Tensor, candidates_AKD: Tensor, scale: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        similarities_AK = (candidates_AKD @ anchors_AD[:, :, None]).squeeze(2)
        positives, negatives = real_positives[rows], real_negatives[rows]
        real = torch.cat([positives, negatives], dim=1)
        log_weights = torch.zeros_like(similarities_AK).masked_fill(~real, -torch.inf)
        positives_AK = torch.cat([positives, torch.zeros_like(negatives)], dim=1)
        # a padding slot counts as a dropped negative
        values = loss(similarities_AK, scale, bias, positives_AK, log_weights)
        return values.sum(), (~negatives.any(dim=1)).sum()

    return block


def _positive_table(positive_index: PositiveIndex) -> tuple[Tensor, Tensor]:
    """The columns of each row's positives side by side ``[A, P]``, and which are real."""
    rows, columns = positive_index.positive_rows, positive_index.positive_columns
    counts = torch.bincount(rows, minlength=len(positive_index.anchors))
    width = int(counts.max()) if len(counts) else 1
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    table = columns.new_zeros(len(counts), width)
    table[rows, place] = columns
    return table, torch.arange(width, device=rows.device) < counts[:, None]


GROUP = 32  # columns of which only the maximum is compared first


@torch.no_grad()
def hardest(
    anchors: Tensor, candidates: Tensor, positive_index: PositiveIndex, count: int, skip: int = 0
) -> tuple[Tensor, Tensor]:
    """The ``count`` most similar negatives of every anchor, after the first ``skip``.

    Args:
        anchors: ``[A, D]``.
        candidates: ``[C, D]``.
        positive_index: their sample ids and keys.
        count: at least 1.
        skip: at least 0.

    Returns:
        columns ``[A, count]`` int64 in no particular order, and which of them are real: an anchor
        may have fewer negatives.
    """
    wanted = min(count + skip, len(candidates))
    columns = positive_index.positive_rows.new_zeros(len(anchors), count)
    real = torch.zeros_like(columns, dtype=torch.bool)
    order = positive_index.candidates.sample_ids.argsort(stable=True)
    for rows, panel in _panels(anchors, candidates, positive_index, order):
        groups = panel.view(len(panel), -1, GROUP)
        # the highest are in the groups with the highest peaks
        best = _highest(groups.amax(dim=2), min(wanted, groups.shape[1]))
        values = groups.gather(1, best[:, :, None].expand(-1, -1, GROUP)).flatten(1)
        places = (best[:, :, None] * GROUP + torch.arange(GROUP, device=best.device)).flatten(1)
        chosen = _highest(values, wanted)
        values, places = values.gather(1, chosen), places.gather(1, chosen)
        is_negative = values != -torch.inf
        if skip:
            is_negative.scatter_(1, _highest(values, min(skip, wanted)), False)
        kept = is_negative.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        real[rows, : kept.shape[1]] = is_negative.gather(1, kept)
        # places past the last candidate are padding, and never real
        places = places.gather(1, kept).clamp(max=len(candidates) - 1)
        columns[rows, : kept.shape[1]] = order[places]
    return columns, real


@torch.no_grad()
def hardest_both_ways(
    anchors: Tensor, candidates: Tensor, positive_index: PositiveIndex
) -> list[tuple[Tensor, Tensor]]:
    """The most similar negative of every row and of every column, in one pass.

    Args:
        anchors: ``[N, D]``.
        candidates: ``[N, D]``, of the same samples in the same order.
        positive_index: of all of them against each other.

    Returns:
        for rows, then for columns, what `hardest` with a count of 1 does.
    """
    order = positive_index.candidates.sample_ids.argsort(stable=True)
    size = len(order)
    values = [anchors.new_full((size,), -torch.inf) for _ in range(2)]
    places = [torch.zeros_like(order) for _ in range(2)]
    for rows, panel in _panels(anchors, candidates, positive_index, order, order):
        values[0][rows], places[0][rows] = panel.max(dim=1)
        # only improved columns need the index
        better = (panel.amax(dim=0)[:size] > values[1]).nonzero().squeeze(1)
        values[1][better], best_rows = panel[:, better].max(dim=0)
        places[1][better] = best_rows + rows.start
    results = []
    for value, place in zip(values, places, strict=True):
        columns, real = torch.empty_like(order), torch.empty_like(order, dtype=torch.bool)
        columns[order] = order[place.clamp(max=size - 1)]
        real[order] = value != -torch.inf
        results.append((columns[:, None], real[:, None]))
    return results


def _panels(
    anchors: Tensor,
    candidates: Tensor,
    positive_index: PositiveIndex,
    column_order: Tensor,
    row_order: Tensor | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Similarities of some rows ``[rows, C padded to groups]``; -inf where there is no negative."""
    size = len(column_order)
    ordered = candidates.new_zeros(-(-size // GROUP) * GROUP, candidates.shape[1])
    torch.index_select(candidates, 0, column_order, out=ordered[:size])
    place_of = torch.empty_like(column_order)
    place_of[column_order] = torch.arange(size, device=place_of.device)
    step = max(1, BLOCK_ENTRIES // len(ordered))
    buffer = anchors.new_empty(min(step, len(anchors)), len(ordered))
    for start in range(0, len(anchors), step):
        rows = slice(start, min(start + step, len(anchors)))
        chosen = rows if row_order is None else row_order[rows]
        panel = buffer[: rows.stop - rows.start]
        torch.mm(anchors[chosen], ordered.T, out=panel)
        panel[:, size:] = -torch.inf
        if positive_index.diagonal is not None:
            own = positive_index.positive_columns[chosen]
            panel.scatter_(1, place_of[own][:, None], -torch.inf)
        else:
            _, negatives = matches(
                positive_index.anchors[chosen],
                positive_index.candidates[column_order],
                positive_index.keys_are_positives,
            )
            panel[:, :size].masked_fill_(~negatives, -torch.inf)
        yield rows, panel


def _highest(values: Tensor, count: int) -> Tensor:
    """Places of the ``count`` highest of each row ``[N, count]``, ascending; the first of equals.

    NaN ranks highest, so that NaNs surface in the loss.
    """
    values = values.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    least = values.topk(count, dim=1).values[:, -1:]
    above, level = values > least, values == least
    missing = count - above.sum(dim=1, keepdim=True)
    chosen = above | (level & (level.cumsum(dim=1) <= missing))
    return chosen.nonzero()[:, 1].view(-1, count)
