"""Gradient caching: encodes a batch in micro-batches and recomputes each in the backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multimodal.core.similarity.tokens import joined

Encode = Callable[[Tensor, "Tensor | None"], Tensor]


def encode_microbatched(
    encode: Encode, inputs: Tensor, mask: Tensor | None, size: int | None
) -> Tensor:
    """``encode(inputs, mask)`` with the activations of only ``size`` samples held at a time.

    The pieces' embeddings are joined before the loss, so the loss and its gradients are those of
    the whole batch (gradient caching, Gao et al. 2021, as activation checkpointing: no second code
    path, and it works under DDP). Random numbers are replayed, so dropout agrees between the
    forward and its recomputation.

    Args:
        encode: (inputs ``[b, ...]``, mask or None) -> embeddings ``[b, D]``, or of
            tokens ``[b, T, D]``.
        inputs: ``[B, ...]``.
        mask: ``[B, T]`` or None.
        size: samples per piece, at least 1; None encodes the batch at once.

    Returns:
        Embeddings ``[B, D]``, or ``[B, T, D]``.
    """
    if size is not None and size < 1:
        raise ValueError(f"micro_batch_size must be at least 1, or null for none; given {size}")
    if size is None or len(inputs) == 0:
        return encode(inputs, mask)
    cuts = list(range(size, len(inputs), size))
    masks = [None] * (len(cuts) + 1) if mask is None else mask.tensor_split(cuts)
    pieces = zip(inputs.tensor_split(cuts), masks, strict=True)
    if not torch.is_grad_enabled():
        return joined([encode(piece, piece_mask) for piece, piece_mask in pieces])
    return joined(
        [
            checkpoint(encode, piece, piece_mask, use_reentrant=False, preserve_rng_state=True)
            for piece, piece_mask in pieces
        ]
    )
