"""InfoNCE's and SigLIP's sums over a whole similarity matrix, tile by tile.

Neither the matrix nor anything of its size is ever stored. Positives and ignored entries follow
from sample ids and keys, not from values, so all passes over the tiles agree on them. `Tiles`
compute; here is what surrounds them: positives, empty rows, gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from multimodal.objectives.kernels.blockwise import SingleUseGradients
from multimodal.objectives.kernels.tiles import TORCH, Logs, Tiles
from multimodal.objectives.matches import PositiveIndex

POSITIVES = 4096  # at a time


def logsumexp_both_ways(
    anchors: Tensor,
    candidates: Tensor,
    scale: Tensor,
    positive_index: PositiveIndex,
    tiles: Tiles = TORCH,
    on_host: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the negatives' summed exponentials along rows and along columns, in one pass.

    A tile of logits and one exponential serve both directions, and the backward recomputes them:
    four matrix products in all. Two cross-entropies over two full matrices take six.

    Args:
        anchors: ``[A, D]``.
        candidates: ``[C, D]``.
        scale: scalar; logits are ``scale * anchors @ candidates.T``.
        positive_index: which entries are positives and which negatives.
        tiles: what computes.
        on_host: the scale and 0, of embeddings of norm 1: the host then does not ask the device.

    Returns:
        rows ``[A]`` and columns ``[C]``, the most negative finite number where there is no
        negative; and the logits of the positives ``[P]``.
    """
    rows, columns, positives = _LogSumExp.apply(  # type: ignore[no-untyped-call]
        anchors, candidates, scale, positive_index, tiles, on_host
    )
    return rows, columns, positives


def sigmoid_loss_sum(
    anchors: Tensor,
    candidates: Tensor,
    scale: Tensor,
    bias: Tensor,
    positive_index: PositiveIndex,
    tiles: Tiles = TORCH,
    on_host: tuple[float, float] | None = None,
) -> Tensor:
    """``sum_n log(1 + exp(l_n)) + sum_p log(1 + exp(-l_p))`` over the matrix, a scalar.

    Its gradients need no sum over a row first, so they are formed in the same pass: three matrix
    products in all.

    Args:
        anchors: ``[A, D]``.
        candidates: ``[C, D]``.
        scale: scalar; logits are ``scale * anchors @ candidates.T + bias``.
        bias: scalar.
        positive_index: which entries are positives and which negatives.
        tiles: what computes.
        on_host: the scale and the bias, of embeddings of norm 1: see `logsumexp_both_ways`.
    """
    total: Tensor = _SigmoidSum.apply(  # type: ignore[no-untyped-call]
        anchors, candidates, scale, bias, positive_index, tiles, torch.is_grad_enabled(), on_host
    )
    return total


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        positive_index: PositiveIndex,
        tiles: Tiles,
        on_host: tuple[float, float] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        row_logs, column_logs, safe = tiles.log_sums(
            anchors, candidates, scale, positive_index, on_host
        )
        lowest = torch.finfo(anchors.dtype).min
        row_logs, column_logs = row_logs.clamp_(min=lowest), column_logs.clamp_(min=lowest)
        positives = scale * _positive_similarities(positive_index, anchors, candidates)
        ctx.save_for_backward(anchors, candidates, scale, row_logs, column_logs)
        ctx.positive_index, ctx.tiles, ctx.safe = positive_index, tiles, safe
        return row_logs, column_logs, positives

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        anchors, candidates, scale, row_logs, column_logs = ctx.saved_tensors
        to_anchors, to_candidates = ctx.tiles.softmax_gradients(
            anchors,
            candidates,
            scale,
            ctx.positive_index,
            _without_empty(row_logs, grads[0]),
            _without_empty(column_logs, grads[1]),
            ctx.safe,
        )
        _add_positives(
            ctx.positive_index, grads[2], anchors, candidates, scale, to_anchors, to_candidates
        )
        to_scale = torch.dot(to_anchors.view(-1), anchors.reshape(-1)).view_as(scale)
        return to_anchors.mul_(scale), to_candidates, to_scale, None, None, None


class _SigmoidSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        bias: Tensor,
        positive_index: PositiveIndex,
        tiles: Tiles,
        grad: bool,
        on_host: tuple[float, float] | None,
    ) -> Tensor:
        total, to_anchors, to_candidates, to_bias = sigmoid_sum(
            anchors, candidates, scale, bias, positive_index, tiles, grad, on_host
        )
        to_scale = torch.dot(to_anchors.view(-1), anchors.reshape(-1)).view_as(scale)
        ctx.gradients = SingleUseGradients(
            [to_anchors.mul_(scale), to_candidates, to_scale, to_bias]
        )
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.gradients.times(grads[0]), None, None, None, None


def sigmoid_sum(
    anchors: Tensor,
    candidates: Tensor,
    scale: Tensor,
    bias: Tensor,
    positive_index: PositiveIndex,
    tiles: Tiles,
    grad: bool,
    on_host: tuple[float, float] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`sigmoid_loss_sum`, and where ``grad`` its gradients.

    Returns:
        the sum; its gradients by ``scale * anchors``, by the candidates, and by the bias.
    """
    total, to_anchors, to_candidates, to_bias = tiles.sigmoid(
        anchors, candidates, scale, bias, positive_index, grad, on_host
    )
    # positives entered as negatives and are put right here: log(1 + exp(-l)) is log(1 + exp(l)) - l
    positives = scale * _positive_similarities(positive_index, anchors, candidates) + bias
    minus_one = -torch.ones_like(positives)
    if grad:
        _add_positives(
            positive_index, minus_one, anchors, candidates, scale, to_anchors, to_candidates
        )
    return total - positives.sum(), to_anchors, to_candidates, to_bias + minus_one.sum()


def _positive_parts(positive_index: PositiveIndex) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The positives some at a time: where in the list, their rows, their columns."""
    for start in range(0, len(positive_index.positive_rows), POSITIVES):
        part = slice(start, start + POSITIVES)
        yield part, positive_index.positive_rows[part], positive_index.positive_columns[part]


def _positive_similarities(
    positive_index: PositiveIndex, anchors: Tensor, candidates: Tensor
) -> Tensor:
    similarities = anchors.new_empty(len(positive_index.positive_rows))
    for part, rows, columns in _positive_parts(positive_index):
        similarities[part] = (anchors[rows] * candidates[columns]).sum(dim=1)
    return similarities


def _add_positives(
    positive_index: PositiveIndex,
    to_positives: Tensor,
    anchors: Tensor,
    candidates: Tensor,
    scale: Tensor,
    to_anchors: Tensor,
    to_candidates: Tensor,
) -> None:
    """Adds what the gradient of the positives' logits is to both sides (before the scale's)."""
    for part, rows, columns in _positive_parts(positive_index):
        to_logits = to_positives[part, None]
        to_anchors.index_add_(0, rows, to_logits * candidates[columns])
        to_candidates.index_add_(0, columns, to_logits * scale * anchors[rows])


def _without_empty(log: Tensor, gradient: Tensor) -> Logs:
    """An empty sum has no gradient, and 0 in place of its log, which keeps NaN out."""
    empty = log == torch.finfo(log.dtype).min
    return log.masked_fill(empty, 0), gradient.masked_fill(empty, 0)
