"""Any loss with any negatives, a block of anchors at a time.

A block has all of its candidates, so its loss is final and its gradients can be formed on the spot,
in the forward: nothing of a block outlives it, memory grows as block x candidates, and nothing is
computed twice. The backward only scales the gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from multimodal.objectives.contract import Context, Loss, Negatives
from multimodal.objectives.items import Items, matches

BLOCK_ENTRIES = 2**22  # of the similarity matrix held at a time, where no chunk size is given

# (rows, anchors [a, D], candidates [C, D], scale, bias) -> their summed loss, and a count
Block = Callable[[slice, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def chunked_sum(
    anchors: Items,
    candidates: Items,
    scale: Tensor,
    bias: Tensor,
    loss: Loss,
    negatives: Negatives,
    context: Context,
    keys_are_positives: bool = True,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss summed over anchors, one direction.

    Args:
        anchors: A items.
        candidates: C items.
        scale: scalar logit scale.
        bias: scalar logit bias.
        loss: one of the losses.
        negatives: a strategy that goes with it.
        context: for the strategy; its scale is replaced by ``scale``.
        keys_are_positives: see `matches`.
        chunk_size: anchors per block; None takes as many as `BLOCK_ENTRIES` allows.

    Returns:
        The sum, a scalar with gradients to both embeddings, scale and bias; and the number of
        anchors that are left without a negative.
    """

    def block(
        rows: slice, anchors_AD: Tensor, candidates_CD: Tensor, scale: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        some = anchors[rows]
        similarities_AC = anchors_AD @ candidates_CD.T
        positives, allowed = matches(some, candidates, keys_are_positives)
        log_weights = negatives(
            similarities_AC,
            positives,
            allowed,
            some.sample_ids,
            candidates.sample_ids,
            replace(context, scale=scale),
        ).masked_fill(~allowed, -torch.inf)
        without = (log_weights == -torch.inf).all(dim=1).sum()
        log_weights = log_weights.masked_fill(positives, 0)
        return loss(similarities_AC, scale, bias, positives, log_weights).sum(), without

    size = chunk_size or max(1, BLOCK_ENTRIES // max(1, len(candidates)))
    total, without = _BlockSum.apply(  # type: ignore[no-untyped-call]
        block,
        size,
        torch.is_grad_enabled(),
        anchors.embeddings,
        candidates.embeddings,
        scale,
        bias,
    )
    return total, without


class _BlockSum(torch.autograd.Function):
    """Sums ``block`` over the rows; every block's gradients are taken before the next is made."""

    @staticmethod
    def forward(
        ctx: Any, block: Block, size: int, grad: bool, anchors: Tensor, *shared: Tensor
    ) -> tuple[Tensor, Tensor]:
        needs = [grad and need for need in ctx.needs_input_grad[3:]]
        total = anchors.new_zeros(())
        count = torch.zeros((), dtype=torch.int64, device=anchors.device)
        sums = [torch.zeros_like(tensor) if need else None
                for need, tensor in zip(needs, (anchors, *shared), strict=True)]  # fmt: skip
        for start in range(0, len(anchors), size):
            rows = slice(start, start + size)
            inputs = [
                tensor.detach().requires_grad_(need)
                for need, tensor in zip(needs, (anchors[rows], *shared), strict=True)
            ]
            with torch.set_grad_enabled(any(needs)):
                value, without = block(rows, *inputs)
            total += value.detach()
            count += without
            if any(needs):
                asked = [tensor for tensor in inputs if tensor.requires_grad]
                found = torch.autograd.grad(value, asked, allow_unused=True)
                targets = [
                    total_grad[rows] if place == 0 else total_grad
                    for place, total_grad in enumerate(sums)
                    if total_grad is not None
                ]
                for target, gradient in zip(targets, found, strict=True):
                    if gradient is not None:
                        target += gradient
        ctx.save_for_backward(*sums)
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if total is None else total * grads[0] for total in ctx.saved_tensors]
        return None, None, None, *scaled
