"""The sums over a similarity matrix by PyTorch's own operations, a tile at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from multimodal.objectives.matches import PositiveIndex

CPU_TILE, TILE = 768, 4096  # rows and columns at a time; on a CPU a tile stays in its cache
SAFE_LOGIT = 75.0  # exp(+-75), summed up 10^5 times, is still a normal float32
UNIT = 1.02  # more than a product of two normalised rows can be


class TorchTiles:
    """`Tiles` for every device and type of numbers."""

    def log_sums(
        self,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        positive_index: PositiveIndex,
        on_host: tuple[float, float] | None,
    ) -> tuple[Tensor, Tensor, bool]:
        """See `Tiles`; the last says whether exponentials can be summed without a maximum."""
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
        return row_sums, column_sums, safe

    def softmax_gradients(
        self,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        positive_index: PositiveIndex,
        of_rows: tuple[Tensor, Tensor],
        of_columns: tuple[Tensor, Tensor],
        safe: bool,
    ) -> tuple[Tensor, Tensor]:
        """See `Tiles`."""
        to_anchors, to_candidates = torch.zeros_like(anchors), torch.zeros_like(candidates)
        (row_logs, row_grads), (column_logs, column_grads) = of_rows, of_columns
        row_factors = row_grads * (-row_logs).exp()
        column_factors = column_grads * (-column_logs).exp()
        for rows, columns, scaled, tile in _tiles(anchors, candidates, scale):
            torch.mm(scaled, candidates[columns].T, out=tile)
            if safe:
                tile.exp_().mul_(row_factors[rows, None] + column_factors[columns])
                positive_index.fill_all_but_negatives(tile, rows, columns, 0)
            else:
                positive_index.fill_all_but_negatives(tile, rows, columns, -torch.inf)
                by_rows = (tile - row_logs[rows, None]).exp_().mul_(row_grads[rows, None])
                tile.sub_(column_logs[columns]).exp_().mul_(column_grads[columns]).add_(by_rows)
            to_anchors[rows].addmm_(tile, candidates[columns])
            to_candidates[columns].addmm_(tile.T, scaled)
        return to_anchors, to_candidates

    def sigmoid(
        self,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        bias: Tensor,
        positive_index: PositiveIndex,
        grad: bool,
        on_host: tuple[float, float] | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `Tiles`."""
        total, to_bias = torch.zeros_like(scale), torch.zeros_like(bias)
        to_anchors, to_candidates = torch.zeros_like(anchors), torch.zeros_like(candidates)
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
