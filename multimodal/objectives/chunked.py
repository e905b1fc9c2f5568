"""Any loss with any negatives over all candidates, a block of anchors at a time."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from multimodal.objectives.blocks import BLOCK_ENTRIES, Direction
from multimodal.objectives.contract import Context, Loss, Negatives
from multimodal.objectives.identity import Identity, matches
from multimodal.objectives.view import View


def chunked_direction(
    anchor_side: int,
    view: View,
    past: tuple[Tensor, Identity] | None,
    loss: Loss,
    negatives: Negatives,
    context: Context,
    keys_are_positives: bool,
    chunk_size: int | None = None,
) -> Direction:
    """One direction of a pair over all of its candidates.

    Args:
        anchor_side: see `Direction`.
        view: the batch.
        past: the other side's queue, embeddings ``[Q, D]`` and identity: further candidates,
            without a gradient.
        loss: one of the losses.
        negatives: a strategy that goes with it.
        context: for the strategy; the scale in it is replaced by the one that has the gradient.
        keys_are_positives: see `matches`.
        chunk_size: rows per block; None takes as many as `BLOCK_ENTRIES` allows.
    """
    anchors = view.batch[view.own]
    candidates = view.batch if past is None else view.batch.followed_by(past[1])

    def block(
        rows: slice, anchors_AD: Tensor, batch_CD: Tensor, scale: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        similarities_AC = anchors_AD @ batch_CD.T
        if past is not None:
            past_AQ = anchors_AD @ past[0].to(anchors_AD.dtype).T
            similarities_AC = torch.cat([similarities_AC, past_AQ], dim=1)
        positives, allowed = matches(anchors[rows], candidates, keys_are_positives)
        log_weights = negatives(
            similarities_AC,
            positives,
            allowed,
            anchors.sample_ids[rows],
            candidates.sample_ids,
            replace(context, scale=scale),
        ).masked_fill(~allowed, -torch.inf)
        without = (log_weights == -torch.inf).all(dim=1).sum()
        log_weights = log_weights.masked_fill(positives, 0)
        return loss(similarities_AC, scale, bias, positives, log_weights).sum(), without

    size = chunk_size or max(1, BLOCK_ENTRIES // max(1, len(candidates)))
    return Direction(anchor_side, view.own, block, size)
