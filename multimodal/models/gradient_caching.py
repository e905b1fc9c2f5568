"""Gradient caching: encodes a batch in micro-batches and recomputes each in the backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multimodal.core.similarity.tokens import joined

Encode = Callable[[Tensor, "Tensor | None"], Tensor]
Pieces = Callable[[Mapping[str, Tensor]], Tensor]


def encode_microbatched(
    encode: Encode, inputs: Tensor, mask: Tensor | None, size: int | None
) -> Tensor:
    """`encode_pieces` of one modality.

    Args:
        encode: (inputs ``[b, ...]``, mask or None) -> embeddings ``[b, D]``, or of
            tokens ``[b, T, D]``.
        inputs: ``[B, ...]``.
        mask: ``[B, T]`` or None.
        size: samples per piece, at least 1; None encodes the batch at once.

    Returns:
        Embeddings ``[B, D]``, or ``[B, T, D]``.
    """
    given = {"inputs": inputs} if mask is None else {"inputs": inputs, "mask": mask}
    return encode_pieces(lambda piece: encode(piece["inputs"], piece.get("mask")), given, size)


def encode_pieces(encode: Pieces, given: Mapping[str, Tensor], size: int | None) -> Tensor:
    """``encode(given)`` with the activations of only ``size`` samples held at a time.

    The pieces' embeddings are joined before the loss, so the loss and its gradients are those of
    the whole batch (gradient caching, Gao et al. 2021, as activation checkpointing: no second code
    path, and it works under DDP). Random numbers are replayed, so dropout agrees between the
    forward and its recomputation.

    Args:
        encode: tensors ``[b, ...]`` by name -> embeddings ``[b, D]``.
        given: tensors ``[B, ...]``.
        size: samples per piece, at least 1; None encodes the batch at once.

    Returns:
        Embeddings ``[B, D]``.
    """
    if size is not None and size < 1:
        raise ValueError(f"micro_batch_size must be at least 1, or null for none; given {size}")
    rows = len(next(iter(given.values())))
    if size is None or rows == 0:
        return encode(given)
    cuts = list(range(size, rows, size))
    split = {name: tensor.tensor_split(cuts) for name, tensor in given.items()}
    pieces = [{name: each[i] for name, each in split.items()} for i in range(len(cuts) + 1)]
    if not torch.is_grad_enabled():
        return joined([encode(piece) for piece in pieces])
    return joined(
        [
            checkpoint(encode, piece, use_reentrant=False, preserve_rng_state=True)
            for piece in pieces
        ]
    )
