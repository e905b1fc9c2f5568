"""Sums a loss over blocks of anchors, so that only one block's similarities are held at a time.

A block has all that its anchors are compared with, so its loss is final and its gradients can be
taken on the spot, in the forward. Nothing of a block outlives it and nothing is computed twice; the
backward only scales the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK_ENTRIES = 2**22  # numbers held at a time, per intermediate result

# (rows, anchors [a, D], candidates, scale, bias) -> their summed loss, how many have no negative.
# Candidates are [C, D], or [a, K, D] where each anchor has its own.
Block = Callable[[slice, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Direction:
    """One direction of a pair: which side is rows, which columns, and the loss of a block of rows.

    Attributes:
        anchors: 0 or 1, the side whose samples are rows.
        own: the rows of that side that are this rank's.
        block: the loss of some of those rows, counted from ``own.start``.
        size: rows per block, at least 1.
        chosen: ``[A, K]`` int64, the rows of the other side that each anchor is compared with;
            None for all of them.
    """

    anchors: int
    own: slice
    block: Block
    size: int
    chosen: Tensor | None = None

    def rows(self) -> Iterator[slice]:
        """The blocks, counted from ``own.start``."""
        count = self.own.stop - self.own.start
        for start in range(0, count, self.size):
            yield slice(start, min(start + self.size, count))


def block_sum(
    directions: list[Direction], sides: tuple[Tensor, Tensor], scale: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The directions' losses summed up, and how many anchors have no negative.

    Args:
        directions: one or two.
        sides: embeddings ``[N, D]`` of both modalities.
        scale: scalar logit scale.
        bias: scalar logit bias.

    Returns:
        two scalars; the first with gradients to sides, scale and bias.
    """
    total, without = _BlockSum.apply(  # type: ignore[no-untyped-call]
        directions, torch.is_grad_enabled(), *sides, scale, bias
    )
    return total, without


class Once:
    """Gradients of a scalar that were formed in the forward, for one backward.

    They are scaled in place: a copy would double what is held.
    """

    def __init__(self, gradients: Sequence[Tensor | None]) -> None:
        self._gradients: Sequence[Tensor | None] | None = gradients

    def times(self, factor: Tensor) -> list[Tensor | None]:
        """The gradients times the scalar's own; a second call is an error."""
        if self._gradients is None:
            raise RuntimeError("the objective can be differentiated once; evaluate it again")
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
                place = slice(direction.own.start + rows.start, direction.own.start + rows.stop)
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
        ctx.gradients = Once(sums)
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
    found = torch.autograd.grad(value, asked, allow_unused=True)
    for place, gradient in zip(wanted, found, strict=True):
        side, at = origins[place]
        target = sums[side]
        if gradient is None or target is None:
            continue
        if isinstance(at, Tensor):
            target.index_add_(0, at.flatten(), gradient.flatten(0, 1))
        else:
            target[at] += gradient
