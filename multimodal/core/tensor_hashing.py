"""Hashes of tensors that are the same on every device and in every process."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def content_ids(inputs: Tensor, mask: Tensor | None = None) -> Tensor:
    """``[B]`` int64, equal for equal inputs.

    Args:
        inputs: ``[B, ...]``, as the encoder gets them.
        mask: ``[B, T]`` bool, True = real; where the inputs are ``[B, T, ...]`` padding is left
            out, so that the longest neighbour in a batch changes no id.
    """
    rows = []
    for i, row in enumerate(inputs.cpu().contiguous()):
        keep = None if mask is None else mask[i].cpu()
        if keep is not None and row.shape[:1] == keep.shape:
            row = row[keep]
        digest = hashlib.blake2b(row.contiguous().numpy().tobytes(), digest_size=8).digest()
        rows.append(int.from_bytes(digest, "little", signed=True))
    return torch.tensor(rows, dtype=torch.int64)


_MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # of splitmix64, as signed integers


def pair_hash(anchor_ids: Tensor, candidate_ids: Tensor, key: int) -> Tensor:
    """A pseudo-random number per (anchor, candidate).

    Args:
        anchor_ids: ``[A]`` int64.
        candidate_ids: ``[C]`` int64.
        key: signed 64-bit integer, for instance of `multimodal.core.hashing.stable_hash`.

    Returns:
        ``[A, C]`` int64, uniform over the non-negative integers.
    """
    anchors, candidates = _mix(anchor_ids ^ key), _mix(candidate_ids)
    return _shift(_mix(anchors[:, None] ^ candidates), 1)


def uniform(ids: Tensor, places: Tensor, key: int) -> Tensor:
    """Pseudo-random numbers in [0, 1], one per (id, place): ``[A, C]`` float64, of `pair_hash`."""
    return pair_hash(ids, places, key).double() / 2**63


def _mix(value: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014); integers wrap around."""
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        value = (value ^ _shift(value, shift)) * multiplier
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own copies the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
