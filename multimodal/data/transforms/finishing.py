"""Standardisation on the device: bytes cross to it, which are a quarter of the numbers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multimodal.data.decoding.buffers import empty_batch

PLACE_BYTES = 8  # of a patch: two float32, before its pixels


@dataclass(frozen=True)
class Standardise:
    """Bytes to standardised float32: ``factor * byte + offset``, by channel.

    Attributes:
        factor: of each channel.
        offset: of each channel.
        axis: of the channels, counted from the end: -3 of pictures, -4 of clips.
    """

    factor: tuple[float, ...]
    offset: tuple[float, ...]
    axis: int = -3

    def __call__(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[..., C, ...]`` uint8 to float32."""
        factor, offset = _constants(self.factor, self.offset, inputs.device)
        shape = (-1, *[1] * (-1 - self.axis))
        return inputs.to(torch.float32).mul_(factor.view(shape)).add_(offset.view(shape))


@dataclass(frozen=True)
class StandardisePatches:
    """The same of patches, whose rows are the bytes of a place and then those of pixels.

    Attributes:
        factor: of each channel.
        offset: of each channel.
    """

    factor: tuple[float, ...]
    offset: tuple[float, ...]

    def __call__(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[..., T, 8 + P]`` uint8 to float32 ``[..., T, 2 + P]``, 0 where the mask is False."""
        places = inputs[..., :PLACE_BYTES].contiguous().view(torch.float32)
        pixels = inputs[..., PLACE_BYTES:]
        factor, offset = _constants(self.factor, self.offset, inputs.device)
        pixels = pixels.view(*pixels.shape[:-1], len(factor), -1) * factor[:, None] + offset[:, None]
        made = torch.cat([places, pixels.flatten(-2)], dim=-1)
        return made if mask is None else made.masked_fill_(~mask[..., None], 0)


def stack_bytes(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures ``[...]`` of equal shape and uint8 as ``[B, ...]``."""
    batch = empty_batch((len(pictures), *pictures[0].shape), torch.uint8)
    for picture, place in zip(pictures, batch, strict=True):
        place.copy_(plain_layout(picture))
    return batch


def plain_layout(pixels: Tensor) -> Tensor:
    """Contiguous: bytes change places faster than floating-point numbers do, and numpy's faster
    than torch's.
    """
    return torch.from_numpy(np.ascontiguousarray(pixels.numpy()))


@functools.lru_cache(maxsize=64)
def _constants(
    factor: tuple[float, ...], offset: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """On the device once, not once a batch."""
    return torch.tensor(factor, device=device), torch.tensor(offset, device=device)
