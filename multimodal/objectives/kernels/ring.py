"""SigLIP over all ranks without a gathered copy: blocks of candidates go round the ranks.

Every rank compares its anchors with one rank's candidates at a time, and passes these on, with the
gradient that has come together for them. After a round each gradient is at home (Zhai et al. 2023,
section 3.3). A rank holds two blocks and their gradients, whatever the number of ranks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from multimodal.core.distributed import pass_on, rank, world_size
from multimodal.objectives.gathered_batch import GatheredBatch
from multimodal.objectives.interfaces import Context
from multimodal.objectives.kernels.blockwise import SingleUseGradients
from multimodal.objectives.kernels.tiled import sigmoid_sum
from multimodal.objectives.kernels.tiles import TORCH, Tiles
from multimodal.objectives.matches import PositiveIndex, index_positives


def round_the_ranks(
    sides: tuple[Tensor, Tensor],
    local: GatheredBatch,
    keys_are_positives: bool,
    context: Context,
    bias: Tensor,
) -> tuple[Tensor, Tensor] | None:
    """The loss of this rank's anchors, and how many had no negative.

    Args:
        sides: embeddings of both modalities, this rank's.
        local: this rank's batch, with the keys of all ranks.
        keys_are_positives: see `matches`.
        context: of the step.
        bias: scalar logit bias.

    Returns:
        None where they have to be gathered: with listed negatives, or too many positives.
    """
    whole = local.whole
    assert whole is not None
    index = index_positives(whole.sample_keys, whole.local_rows, keys_are_positives, whole.related)
    if index is None or local.listed:
        return None
    total = ring_sigmoid_sum(
        *sides, context.scale, bias, index, whole, context.tiles, context.on_host
    )
    return total, index.without_negatives


def ring_sigmoid_sum(
    anchors: Tensor,
    candidates: Tensor,
    scale: Tensor,
    bias: Tensor,
    positive_index: PositiveIndex,
    whole: GatheredBatch,
    tiles: Tiles = TORCH,
    on_host: tuple[float, float] | None = None,
) -> Tensor:
    """`sigmoid_loss_sum` of this rank's anchors and all ranks' candidates.

    Every rank has to call it. The gradients are formed in the forward and are exact where all ranks
    weight their sums alike, as a mean over the global batch does.

    Args:
        anchors: ``[n, D]``, this rank's.
        candidates: ``[n, D]``, this rank's; those of the others come by themselves.
        scale: scalar.
        bias: scalar.
        positive_index: of the own rows against those of all ranks.
        whole: the keys of all ranks, and how many rows each has.
        tiles: what computes.
        on_host: see `logsumexp_both_ways`.
    """
    total: Tensor = _RingSum.apply(  # type: ignore[no-untyped-call]
        anchors, candidates, scale, bias, positive_index, whole, tiles, torch.is_grad_enabled(),
        on_host,
    )  # fmt: skip
    return total


class _RingSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        bias: Tensor,
        positive_index: PositiveIndex,
        whole: GatheredBatch,
        tiles: Tiles,
        grad: bool,
        on_host: tuple[float, float] | None,
    ) -> Tensor:
        ranks, own = world_size(), rank()
        block = candidates.new_zeros(whole.max_rows, candidates.shape[1])
        block[: len(candidates)] = candidates
        to_block, to_anchors = torch.zeros_like(block), torch.zeros_like(anchors)
        total, to_bias = torch.zeros_like(scale), torch.zeros_like(bias)
        for turn in range(ranks):
            owner = (own - turn) % ranks
            # The next block comes while this one is computed.
            coming = pass_on(block) if turn < ranks - 1 else None
            size = whole.sizes[owner]
            part, to_a, to_c, to_b = sigmoid_sum(
                anchors, block[:size], scale, bias, _block_of(positive_index, whole, owner), tiles,
                grad, on_host,
            )  # fmt: skip
            total += part
            if grad:
                to_anchors += to_a
                to_block[:size] += to_c
                to_bias += to_b
                to_block = pass_on(to_block).wait()
            if coming is not None:
                block = coming.wait()
        to_scale = torch.dot(to_anchors.view(-1), anchors.reshape(-1)).view_as(scale)
        to_own = to_block[: len(candidates)].clone()
        ctx.gradients = SingleUseGradients([to_anchors.mul_(scale), to_own, to_scale, to_bias])
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.gradients.times(grads[0]), None, None, None, None, None


def _block_of(index: PositiveIndex, whole: GatheredBatch, owner: int) -> PositiveIndex:
    """The part of an index whose columns are one rank's."""
    first = sum(whole.sizes[:owner])
    columns = slice(first, first + whole.sizes[owner])
    if index.diagonal is not None:  # all positives are of the own samples
        inside: slice | Tensor = slice(None) if owner == rank() else slice(0)
    else:
        inside = (index.positive_columns >= first) & (index.positive_columns < columns.stop)
    return replace(
        index,
        candidates=whole.sample_keys[columns],
        positive_rows=index.positive_rows[inside],
        positive_columns=index.positive_columns[inside] - first,
    )
