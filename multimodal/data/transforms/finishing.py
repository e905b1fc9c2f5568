"""Standardisation on the device: bytes cross to it, which are a quarter of the numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from multimodal.core.batch import Batch
from multimodal.data.decoding.buffers import empty_batch

Finish = Callable[[Tensor, "Tensor | None"], Tensor]  # of a batch's inputs and mask

PLACE_BYTES = 8  # of a patch: two float32, before its pixels


@runtime_checkable
class Finishing(Protocol):
    """A transform whose batches may stay bytes until they are on the device.

    Attributes:
        finish: makes them what ``collate`` gives.
    """

    @property
    def finish(self) -> Finish:
        """Of uint8 ``[B, ...]`` and its mask."""
        ...

    def collate_bytes(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor | None] | None:
        """The batch of what ``prepare`` gave, as uint8; None where floats are there."""
        ...


def finished(batch: Batch, transforms: Mapping[str, Any]) -> Batch:
    """``batch`` with float inputs, where they came to the device as bytes.

    Args:
        batch: on its device.
        transforms: by modality.
    """
    inputs = dict(batch.inputs)
    for name, rows in inputs.items():
        transform = transforms.get(name)
        if rows.dtype != torch.uint8 or not isinstance(transform, Finishing):
            continue
        made = transform.finish(rows, batch.masks.get(name))
        present = batch.presence.get(name)
        if present is not None:  # the input is zeros where there is none
            made.masked_fill_(~present.view(-1, *[1] * (made.ndim - 1)), 0)
        inputs[name] = made
    return replace(batch, inputs=inputs)


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
        pixels = inputs[..., PLACE_BYTES:].view(*inputs.shape[:-1], len(self.factor), -1)
        factor, offset = _constants(self.factor, self.offset, inputs.device)
        pixels = pixels * factor[:, None] + offset[:, None]
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
