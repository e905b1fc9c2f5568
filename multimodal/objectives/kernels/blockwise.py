"""Any loss with any negatives over all candidates, one block of anchors at a time.

No matrix of all similarities is ever kept: each block's gradients are computed with its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from multimodal.core.similarity.similarities import Comparison
from multimodal.objectives.columns import Columns
from multimodal.objectives.interfaces import Context, Loss, Negatives

BLOCK_ENTRIES = 2**22  # numbers held at a time, per intermediate result

# (rows, anchors [a, D], candidates, scale, bias) -> their summed loss, how many have no negative.
# Candidates are [C, D], or [a, K, D] where each anchor has its own. Of tokens,
# anchors are [a, T, D] and candidates [C, U, D].
RowBlockLoss = Callable[[slice, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Direction:
    """One direction of a pair: which side is rows, which columns, and the loss of a block of rows.

    Attributes:
        anchors: 0 or 1, the side whose samples are rows.
        local_rows: the rows of that side that are this rank's.
        block: the loss of some of those rows, counted from ``local_rows.start``.
        size: rows per block, at least 1.
        chosen: ``[A, K]`` int64, the rows of the other side that each anchor is compared with;
            None for all of them.
    """

    anchors: int
    local_rows: slice
    block: RowBlockLoss
    size: int
    chosen: Tensor | None = None

    def rows(self) -> Iterator[slice]:
        """The blocks, counted from ``local_rows.start``."""
        count = self.local_rows.stop - self.local_rows.start
        for start in range(0, count, self.size):
            yield slice(start, min(start + self.size, count))


def block_sum(
    directions: list[Direction], sides: tuple[Tensor, Tensor], scale: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The directions' losses summed up, and how many anchors have no negative.

    Args:
        directions: one or two.
        sides: embeddings ``[N, D]`` of both modalities, or ``[N, T, D]`` of their tokens.
        scale: scalar logit scale.
        bias: scalar logit bias.

    Returns:
        two scalars; the first with gradients to sides, scale and bias.
    """
    total, without = _BlockSum.apply(  # type: ignore[no-untyped-call]
        directions, torch.is_grad_enabled(), *sides, scale, bias
    )
    return total, without


class SingleUseGradients:
    """Gradients of a scalar that were formed in the forward, for one backward.

    They are scaled in place: a copy would double the memory.
    """

    def __init__(self, gradients: Sequence[Tensor | None]) -> None:
        self._gradients: Sequence[Tensor | None] | None = gradients

    def times(self, factor: Tensor) -> list[Tensor | None]:
        """The gradients times the scalar's own; a second call is an error."""
        if self._gradients is None:
            raise RuntimeError("backward() already ran on this loss; recompute the forward pass")
        gradients, self._gradients = self._gradients, None
        return [None if gradient is None else gradient.mul_(factor) for gradient in gradients]


class _BlockSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, directions: list[Direction], grad: bool, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        needs = [grad and need for need in ctx.needs_input_grad[2:]]
        sums = [
            torch.zeros_like(t) if need else None for t, need in zip(tensors, needs, strict=True)
        ]
        total = torch.zeros_like(tensors[2])
        without = torch.zeros((), dtype=torch.int64, device=total.device)
        for direction in directions:
            row_side, column_side = direction.anchors, 1 - direction.anchors
            for rows in direction.rows():
                place = slice(
                    direction.local_rows.start + rows.start, direction.local_rows.start + rows.stop
                )
                chosen = slice(None) if direction.chosen is None else direction.chosen[rows]
                # where each input comes from, and so where its gradient goes
                origins = [(row_side, place), (column_side, chosen), (2, ...), (3, ...)]
                inputs = [tensors[i][at].detach().requires_grad_(needs[i]) for i, at in origins]
                with torch.set_grad_enabled(any(needs)):
                    value, count = direction.block(rows, *inputs)
                total += value.detach()
                without += count
                if value.requires_grad:
                    _accumulate(sums, origins, inputs, value)
        ctx.gradients = SingleUseGradients(sums)
        ctx.mark_non_differentiable(without)
        return total, without

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.gradients.times(grads[0])


def _accumulate(
    sums: list[Tensor | None],
    origins: list[tuple[int, Any]],
    inputs: list[Tensor],
    value: Tensor,
) -> None:
    """Adds the gradients of ``value`` to the sums of what its inputs were taken from."""
    wanted = [place for place, tensor in enumerate(inputs) if tensor.requires_grad]
    asked = [inputs[place] for place in wanted]
    gradients = torch.autograd.grad(value, asked, allow_unused=True)
    for place, gradient in zip(wanted, gradients, strict=True):
        side, at = origins[place]
        target = sums[side]
        if gradient is None or target is None:
            continue
        if isinstance(at, Tensor):
            target.index_add_(0, at.flatten(), gradient.flatten(0, 1))
        else:
            target[at] += gradient


def chunked_direction(
    anchor_side: int,
    local_rows: slice,
    columns: Columns,
    past: Tensor | None,
    loss: Loss,
    negatives: Negatives,
    context: Context,
    compare: Comparison,
    kept: int,
    chunk_size: int | None = None,
) -> Direction:
    """One direction of a pair over all of its candidates.

    Args:
        anchor_side: see `Direction`.
        local_rows: this rank's rows of the batch, whose losses these are.
        columns: the candidates.
        past: ``[Q, D]``, the queue's rows: further candidates, without a gradient.
        loss: one of the losses.
        negatives: a strategy that goes with it.
        context: for the strategy; the scale in it is replaced by the one that has the gradient.
        compare: anchors with candidates.
        kept: numbers that the comparison keeps of each entry (`Comparison.kept`).
        chunk_size: rows per block; None takes as many as `BLOCK_ENTRIES` allows.
    """
    anchors, candidates = columns.batch[local_rows], columns.keys()

    def block(
        rows: slice, anchors_AD: Tensor, side_CD: Tensor, scale: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        similarities_AC = compare.matrix(anchors_AD, side_CD[columns.used])
        if past is not None:
            past_AQ = anchors_AD @ past.to(anchors_AD.dtype).T
            similarities_AC = torch.cat([similarities_AC, past_AQ], dim=1)
        positives, allowed = columns.matches(anchors[rows], candidates)
        log_weights = negatives(
            similarities_AC,
            positives,
            allowed,
            anchors.sample_ids[rows],
            candidates.sample_ids,
            replace(context, scale=scale),
        ).masked_fill(~allowed, -torch.inf)
        without = (log_weights == -torch.inf).all(dim=1).sum() * columns.in_batch
        log_weights = log_weights.masked_fill(positives, 0)
        return loss(similarities_AC, scale, bias, positives, log_weights).sum(), without

    size = chunk_size or max(1, BLOCK_ENTRIES // max(1, kept * len(candidates)))
    return Direction(anchor_side, local_rows, block, size)
