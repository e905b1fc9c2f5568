"""InfoNCE's and SigLIP's sums over a whole similarity matrix, tile by tile.

Neither the matrix nor anything of its size is ever stored. Positives and ignored entries follow
from sample ids and keys, not from values, so all passes over the tiles agree on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from multimodal.objectives.kernels.blockwise import SingleUseGradients
from multimodal.objectives.matches import PositiveIndex

CPU_TILE, TILE = 768, 4096  # rows and columns at a time; on a CPU a tile stays in its cache
SAFE_LOGIT = 75.0  # exp(+-75), summed up 10^5 times, is still a normal float32
UNIT = 1.02  # more than a product of two normalised rows can be


def logsumexp_both_ways(
    anchors: Tensor,
    candidates: Tensor,
    scale: Tensor,
    positive_index: PositiveIndex,
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
        on_host: the scale and 0, of embeddings of norm 1: the host then does not ask the device.

    Returns:
        rows ``[A]`` and columns ``[C]``, the most negative finite number where there is no
        negative; and the logits of the positives ``[P]``.
    """
    rows, columns, positives = _LogSumExp.apply(  # type: ignore[no-untyped-call]
        anchors, candidates, scale, positive_index, on_host
    )
    return rows, columns, positives


def sigmoid_loss_sum(
    anchors: Tensor,
    candidates: Tensor,
    scale: Tensor,
    bias: Tensor,
    positive_index: PositiveIndex,
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
        on_host: the scale and the bias, of embeddings of norm 1: see `logsumexp_both_ways`.
    """
    total: Tensor = _SigmoidSum.apply(  # type: ignore[no-untyped-call]
        anchors, candidates, scale, bias, positive_index, torch.is_grad_enabled(), on_host
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
        on_host: tuple[float, float] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # without overflow or underflow, exponentials can be summed directly
        safe = _largest_logit(anchors, candidates, scale, None, on_host) <= SAFE_LOGIT
        start = 0.0 if safe else -torch.inf
        row_sums, column_sums = (s.new_full((len(s),), start) for s in (anchors, candidates))
        for rows, columns, scaled, tile in _tiles(anchors, candidates, scale):
            torch.mm(scaled, candidates[columns].T, out=tile)
            if safe:
                positive_index.fill_all_but_negatives(tile.exp_(), rows, columns, 0)
                row_sums[rows] += tile.sum(dim=1)
                column_sums[columns] += tile.sum(dim=0)
            else:
                positive_index.fill_all_but_negatives(tile, rows, columns, -torch.inf)
                for sums, part, dim in ((row_sums, rows, 1), (column_sums, columns, 0)):
                    sums[part] = torch.logaddexp(sums[part], tile.logsumexp(dim))
        if safe:
            row_sums, column_sums = row_sums.log_(), column_sums.log_()
        lowest = torch.finfo(anchors.dtype).min
        row_logs, column_logs = row_sums.clamp_(min=lowest), column_sums.clamp_(min=lowest)
        positives = scale * _positive_similarities(positive_index, anchors, candidates)
        ctx.save_for_backward(anchors, candidates, scale, row_logs, column_logs)
        ctx.positive_index, ctx.safe = positive_index, safe
        return row_logs, column_logs, positives

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        anchors, candidates, scale, row_logs, column_logs = ctx.saved_tensors
        to_anchors, to_candidates = torch.zeros_like(anchors), torch.zeros_like(candidates)
        row_grads, row_logs = _without_empty(grads[0], row_logs)
        column_grads, column_logs = _without_empty(grads[1], column_logs)
        row_factors = row_grads * (-row_logs).exp()
        column_factors = column_grads * (-column_logs).exp()
        for rows, columns, scaled, tile in _tiles(anchors, candidates, scale):
            torch.mm(scaled, candidates[columns].T, out=tile)
            if ctx.safe:
                tile.exp_().mul_(row_factors[rows, None] + column_factors[columns])
                ctx.positive_index.fill_all_but_negatives(tile, rows, columns, 0)
            else:
                ctx.positive_index.fill_all_but_negatives(tile, rows, columns, -torch.inf)
                by_rows = (tile - row_logs[rows, None]).exp_().mul_(row_grads[rows, None])
                tile.sub_(column_logs[columns]).exp_().mul_(column_grads[columns]).add_(by_rows)
            to_anchors[rows].addmm_(tile, candidates[columns])
            to_candidates[columns].addmm_(tile.T, scaled)
        _add_positives(
            ctx.positive_index, grads[2], anchors, candidates, scale, to_anchors, to_candidates
        )
        to_scale = torch.dot(to_anchors.view(-1), anchors.reshape(-1)).view_as(scale)
        return to_anchors.mul_(scale), to_candidates, to_scale, None, None


class _SigmoidSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        bias: Tensor,
        positive_index: PositiveIndex,
        grad: bool,
        on_host: tuple[float, float] | None,
    ) -> Tensor:
        total, to_anchors, to_candidates, to_bias = sigmoid_tiles(
            anchors, candidates, scale, bias, positive_index, grad, on_host
        )
        to_scale = torch.dot(to_anchors.view(-1), anchors.reshape(-1)).view_as(scale)
        ctx.gradients = SingleUseGradients(
            [to_anchors.mul_(scale), to_candidates, to_scale, to_bias]
        )
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.gradients.times(grads[0]), None, None, None


def sigmoid_tiles(
    anchors: Tensor,
    candidates: Tensor,
    scale: Tensor,
    bias: Tensor,
    positive_index: PositiveIndex,
    grad: bool,
    on_host: tuple[float, float] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`sigmoid_loss_sum`, and where ``grad`` its gradients.

    Returns:
        the sum; its gradients by ``scale * anchors``, by the candidates, and by the bias.
    """
    # positives enter the tiles as negatives and are put right after: log(1 + exp(-l)) is
    # log(1 + exp(l)) - l
    positives = scale * _positive_similarities(positive_index, anchors, candidates) + bias
    total = -positives.sum()
    to_anchors, to_candidates = torch.zeros_like(anchors), torch.zeros_like(candidates)
    to_bias = -torch.ones_like(positives).sum()
    highest = max(0.0, _largest_logit(anchors, candidates, scale, bias, on_host))
    for rows, columns, scaled, tile in _tiles(anchors, candidates, scale):
        torch.mm(scaled, candidates[columns].T, out=tile).add_(bias)
        positive_index.fill_ignored(tile, rows, columns, -torch.inf)
        if highest <= SAFE_LOGIT:  # one exponential serves the value and the gradient
            total += _log1p_sum(tile.exp_(), highest)
            if grad:
                tile.div_(tile + 1)
        else:
            total += F.softplus(tile, threshold=40).sum()  # beyond, the 1 is below precision
            if grad:
                tile.sigmoid_()
        if grad:
            to_bias += tile.sum()
            to_anchors[rows].addmm_(tile, candidates[columns])
            to_candidates[columns].addmm_(tile.T, scaled)
    minus_one = -torch.ones_like(positives)
    _add_positives(positive_index, minus_one, anchors, candidates, scale, to_anchors, to_candidates)
    return total, to_anchors, to_candidates, to_bias


def _log1p_sum(x: Tensor, highest: float) -> Tensor:
    """``log1p(x).sum()`` of numbers from 0 to ``exp(highest)``.

    ``log1p(x) + log1p(y) = log1p(x + y + x y)``: one logarithm for many numbers, with nothing lost
    where they are small, as long as the product stays far from overflow.
    """
    x, log_bound = x.view(-1), highest + math.log(2)  # of 1 + x
    while len(x) > 1 and len(x) % 2 == 0 and 2 * log_bound <= SAFE_LOGIT:
        left, right = x.view(2, -1)
        x, log_bound = torch.addcmul(left + right, left, right), 2 * log_bound
    return x.log1p().sum()


def _tiles(
    anchors: Tensor, candidates: Tensor, scale: Tensor
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Row and column ranges, the rows' scaled anchors, and a buffer ``[rows, columns]``."""
    side = CPU_TILE if anchors.device.type == "cpu" else TILE
    buffer = anchors.new_empty(side * side)
    for top in range(0, len(anchors), side):
        rows = slice(top, min(top + side, len(anchors)))
        scaled = anchors[rows] * scale
        for left in range(0, len(candidates), side):
            columns = slice(left, min(left + side, len(candidates)))
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            yield rows, columns, scaled, buffer[: shape[0] * shape[1]].view(shape)


def _positive_parts(positive_index: PositiveIndex) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The positives some at a time: where in the list, their rows, their columns."""
    for start in range(0, len(positive_index.positive_rows), TILE):
        part = slice(start, start + TILE)
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


def _without_empty(gradient: Tensor, log: Tensor) -> tuple[Tensor, Tensor]:
    """An empty sum has no gradient, and 0 in place of its log, which keeps NaN out."""
    empty = log == torch.finfo(log.dtype).min
    return gradient.masked_fill(empty, 0), log.masked_fill(empty, 0)


def _largest_logit(
    anchors: Tensor,
    candidates: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    on_host: tuple[float, float] | None,
) -> float:
    """A bound of the logits, without their sign before the bias is added."""
    if on_host is not None:
        return UNIT * on_host[0] + on_host[1]
    bound = scale * _largest_norm(anchors) * _largest_norm(candidates)
    return float(bound if bias is None else bound + bias)


def _largest_norm(rows: Tensor) -> Tensor:
    return rows.norm(dim=1).amax() if len(rows) else rows.new_zeros(())
