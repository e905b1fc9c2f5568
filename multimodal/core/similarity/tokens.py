"""Embeddings of tokens ``[B, T, D]``: a token is a row of unit norm, and padding a row of zeros.

So a tensor says by itself which of its tokens are real, and what gathers, joins or cuts rows of
samples needs no mask beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def real_tokens(embeddings: Tensor) -> Tensor:
    """Which tokens are not padding: ``[B, T]`` bool."""
    return embeddings.any(dim=-1)


def without_padding(embeddings: Tensor, mask: Tensor | None) -> Tensor:
    """``[B, T, D]`` with zeros where ``mask`` ``[B, T]`` is False; None: every token is real."""
    return embeddings if mask is None else embeddings.masked_fill(~mask[..., None], 0)


def padded(embeddings: Tensor, length: int) -> Tensor:
    """``[B, T, D]`` with padding up to ``length`` tokens; embeddings ``[B, D]`` unchanged."""
    missing = length - embeddings.shape[1]
    if embeddings.ndim == 2 or missing == 0:
        return embeddings
    return functional.pad(embeddings, (0, 0, 0, missing))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The samples of all parts, ``[B, D]``, or ``[B, T, D]`` padded to the longest."""
    if parts[0].ndim == 2:
        return torch.cat(list(parts))
    length = max(part.shape[1] for part in parts)
    return torch.cat([padded(part, length) for part in parts])
