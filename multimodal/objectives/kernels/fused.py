"""Losses over all candidates of a batch that need no more than sums over their similarities."""

from __future__ import annotations

import torch
from torch import Tensor

from multimodal.core.distributed import all_gather, all_reduce_sum, world_size
from multimodal.objectives.gathered_batch import GatheredBatch
from multimodal.objectives.interfaces import Loss, Negatives
from multimodal.objectives.kernels.tiled import logsumexp_both_ways, sigmoid_loss_sum
from multimodal.objectives.kernels.tiles import TORCH, Tiles
from multimodal.objectives.losses.sigmoid import SigLIP
from multimodal.objectives.losses.softmax import DCL, InfoNCE
from multimodal.objectives.matches import PositiveIndex
from multimodal.objectives.negatives.selection import InBatch


def has_fused_kernel(loss: Loss, negatives: Negatives) -> bool:
    """Whether the combination has a fused path: in-batch InfoNCE without smoothing, DCL, SigLIP."""
    if not isinstance(negatives, InBatch):
        return False
    return isinstance(loss, SigLIP | DCL) or (
        isinstance(loss, InfoNCE) and not loss.label_smoothing
    )


def fused_sum(
    loss: Loss,
    sides: tuple[Tensor, Tensor],
    positive_index: PositiveIndex,
    gathered: GatheredBatch,
    scale: Tensor,
    bias: Tensor,
    tiles: Tiles = TORCH,
    on_host: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """This rank's part of the loss, both directions summed up; and anchors without a negative.

    Args:
        loss: one that `has_fused_kernel`.
        sides: embeddings of both modalities, of all rows of the batch.
        positive_index: of the own rows against all rows.
        gathered: the batch.
        scale: scalar logit scale.
        bias: scalar logit bias.
        tiles: what computes.
        on_host: both as numbers, where the host has them already.
    """
    anchors, candidates = sides
    if len(positive_index.anchors) < len(
        positive_index.candidates
    ):  # else a slice would only copy gradients
        anchors = anchors[gathered.local_rows]
    if isinstance(loss, SigLIP):
        total = sigmoid_loss_sum(anchors, candidates, scale, bias, positive_index, tiles, on_host)
        return total, positive_index.without_negatives
    assert isinstance(loss, InfoNCE | DCL)
    row_logs, column_logs, positives = logsumexp_both_ways(
        anchors, candidates, scale, positive_index, tiles, on_host
    )
    rows, columns = positive_index.positive_rows, positive_index.positive_columns
    per_row = torch.bincount(rows, minlength=len(anchors))
    per_column = torch.bincount(columns, minlength=len(candidates))
    if gathered.shared and world_size() > 1:
        # A rank has all rows of its own and so a part of every column. Each rank takes both
        # directions' terms of the positives in its rows: together, every term once.
        column_logs = all_gather(column_logs[None], [1] * world_size()).logsumexp(dim=0)
        per_column = all_reduce_sum(per_column)
    terms = [
        loss.from_logs(positives, row_logs[rows]) / per_row[rows],
        loss.from_logs(positives, column_logs[columns]) / per_column[columns],
    ]
    return torch.cat(terms).sum(), 2 * positive_index.without_negatives
