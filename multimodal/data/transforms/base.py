"""What a transform is, and what several of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimodal.data.decoding.buffers import empty_batch
from multimodal.data.sample_rng import SampleRNG


class Transform(Protocol):
    """From the decoded value of one modality to what its encoder takes.

    One whose results all have the same shape says so by an attribute ``shape``, and ``dtype`` where
    that is not float32; whether the tower takes them is then known before the first batch. The
    shape of texts is that of the longest one.
    """

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """One sample's input.

        Args:
            value: what the source decoded.
            rng: the sample's random choices; None for the one result that evaluation uses.

        Raises:
            DecodeError: if the value is not what this transform takes.
        """
        ...

    def collate(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The batch ``[B, ...]``, and the mask ``[B, T]`` (True = real) where lengths vary."""
        ...


class Stacked:
    """For transforms whose results all have the same shape."""

    def collate(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The batch ``[B, ...]``; there is nothing to mask."""
        return stack(inputs), None


def stack(inputs: list[Tensor]) -> Tensor:
    """The batch ``[B, ...]``."""
    batch = empty_batch((len(inputs), *inputs[0].shape), inputs[0].dtype)
    return torch.stack(inputs, out=batch)


def standardisation(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """``mean`` and ``std`` as checked ``[C]`` float32 arrays.

    Raises:
        ValueError: if their lengths differ or a deviation is not above 0.
    """
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise ValueError(
            f"mean and std need one number per channel, std above 0; got mean={list(mean)} and "
            f"std={list(std)}"
        )
    return np.array(mean, np.float32), np.array(std, np.float32)


def require_shares(**values: float) -> None:
    """Raises ValueError for the first of ``values`` that is not in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")
