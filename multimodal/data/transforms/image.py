"""Pictures for a vision encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimodal.data.buffers import empty_batch
from multimodal.data.draw import Draw
from multimodal.data.errors import DecodeError
from multimodal.data.transforms.base import standardisation
from multimodal.data.transforms.geometry import Geometry, crop_and_resize, erase
from multimodal.data.transforms.rand_augment import rand_augment

_HEADROOM = 1.4  # of a reduced picture: 44 dB; without any it would be 38
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class ImageTransform:
    """Crop, resize, colour jitter, erasing, standardisation.

    Brightness, contrast and saturation are factors drawn from [1 - x, 1 + x] and applied in this
    order, as one linear map of the colours.

    Args:
        size: side of the square result, in pixels.
        mean: per channel, of values in [0, 1].
        std: per channel.
        scale: range of the random crop's share of the area; [1, 1] for the central square, and a
            share above 1 shows the picture smaller, on a border.
        ratio: range of the random crop's width / height.
        flip: probability of mirroring left and right.
        brightness: x of the brightness factor, 0 to 1.
        contrast: x of the contrast factor, 0 to 1.
        saturation: x of the saturation factor, 0 to 1.
        grayscale: probability of losing all colour.
        erasing: probability of a rectangle set to the mean.
        interpolation: ``bicubic`` or ``bilinear``.
        border: brightness of that border, 0 (black) to 1 (white).
        augment_operations: changes drawn by RandAugment, after the crop; 0 for none.
        augment_magnitude: their strength, 0 to 10.
        augment_spatial: whether turns, shears and shifts are among them; what is aligned with the
            picture would not follow.
        reduced: decodes a JPEG to half, a quarter or an eighth of its sides where that is still 1.4
            times what the result needs, which is faster and comes within about 44 dB.
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        scale: Sequence[float] = (1.0, 1.0),
        ratio: Sequence[float] = (0.75, 1.3333),
        flip: float = 0.0,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        grayscale: float = 0.0,
        erasing: float = 0.0,
        interpolation: str = "bicubic",
        border: float = 0.0,
        augment_operations: int = 0,
        augment_magnitude: float = 9.0,
        augment_spatial: bool = True,
        reduced: bool = False,
    ) -> None:
        if interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation must be bicubic or bilinear, got {interpolation!r}")
        for name, value in (
            ("brightness", brightness),
            ("contrast", contrast),
            ("saturation", saturation),
            ("grayscale", grayscale),
            ("erasing", erasing),
            ("border", border),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if augment_operations < 0 or not 0 <= augment_magnitude <= 10:
            raise ValueError(
                "augment_operations must not be negative and augment_magnitude in [0, 10], got "
                f"{augment_operations} and {augment_magnitude}"
            )
        means, deviations = standardisation(mean, std)
        if len(means) != 3:
            raise ValueError(f"mean and std need 3 numbers, got {len(means)}")
        self.size = size
        self.geometry = Geometry(scale, ratio, flip)
        self.interpolation = interpolation
        self.reduced = reduced
        self.augment = (augment_operations, augment_magnitude, augment_spatial)
        self.border = 255.0 * border
        self.jitter = (brightness, contrast, saturation)
        self.grayscale = grayscale
        self.erasing = erasing
        self._factor = torch.from_numpy(1 / (255 * deviations)).view(3, 1, 1)
        self._offset = torch.from_numpy(-means / deviations).view(3, 1, 1)

    def least(self, draw: Draw | None, height: int, width: int) -> tuple[int, int]:
        """The smallest height and width of the whole picture that the result can be made of."""
        box = self.geometry.box(draw, height, width)
        factor = _HEADROOM * self.size / min(box.height, box.width)
        return math.ceil(height * factor), math.ceil(width * factor)

    @property
    def is_random(self) -> bool:
        """Whether draws change the result."""
        return self.geometry.is_random or self._changes_colours

    @property
    def moves_apart(self) -> bool:
        """Whether it moves the picture in a way that no other modality follows."""
        operations, _, spatial = self.augment
        return operations > 0 and spatial

    @property
    def _changes_colours(self) -> bool:
        return any((*self.jitter, self.grayscale, self.erasing, self.augment[0]))

    def __call__(self, value: Any, draw: Draw | None) -> Tensor:
        """One picture.

        Args:
            value: uint8 ``[H, W, 3]``, or 16-bit greyscale ``[H, W]``.
            draw: the sample's random choices; None for the central square, unchanged.

        Returns:
            float32 ``[3, size, size]``, standardised.

        Raises:
            DecodeError: if the value is no picture.
        """
        pixels = self.prepare(value, draw)
        return self._standardise(pixels) if pixels.dtype == torch.uint8 else pixels

    def prepare(self, value: Any, draw: Draw | None) -> Tensor:
        """The same, but as uint8 ``[3, size, size]`` where no colours change.

        ``collate`` standardises such a picture right into its batch.
        """
        pixels = torch.from_numpy(_as_rgb(value)).permute(2, 0, 1)
        box = self.geometry.box(draw, *pixels.shape[1:])
        pixels = crop_and_resize(pixels, box, self.size, self.interpolation, self.border)
        if draw is None or not self._changes_colours:
            return pixels
        random = draw.stream("image")
        if self.augment[0]:
            augmented = rand_augment(
                pixels.permute(1, 2, 0).numpy(), *self.augment, draw.stream("image.augment")
            )
            pixels = torch.from_numpy(augmented.copy()).permute(2, 0, 1)
        picture = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        picture = self._jitter_colours(picture, random)
        picture.mul_(self._factor).add_(self._offset)
        erase(picture, self.erasing, random)
        return picture

    def collate(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The batch ``[B, 3, size, size]``; there is nothing to mask."""
        batch = empty_batch((len(inputs), *inputs[0].shape), torch.float32)
        for picture, place in zip(inputs, batch, strict=True):
            if picture.dtype == torch.uint8:
                self._standardise(picture, place)
            else:
                place.copy_(picture)
        return batch, None

    def _standardise(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = torch.empty(pixels.shape)
        # Two steps: bytes change places faster than floating-point numbers do, and numpy's faster
        # than torch's.
        planes = torch.from_numpy(np.ascontiguousarray(pixels.numpy()))
        return out.copy_(planes).mul_(self._factor).add_(self._offset)

    def _jitter_colours(self, picture: Tensor, random: np.random.Generator) -> Tensor:
        """The colour changes, on values in [0, 255]."""
        *factors, gray = random.random(4).tolist()
        brightness, contrast, saturation = (
            1 + x * (2 * u - 1) for x, u in zip(self.jitter, factors, strict=True)
        )
        if gray < self.grayscale:
            saturation = 0.0
        if brightness == contrast == saturation == 1:
            return picture
        # Saturation pulls towards each pixel's own luma, contrast towards the mean luma.
        own = [brightness * contrast * (1 - saturation) * weight for weight in _LUMA]
        matrix = torch.tensor([own, own, own])
        matrix.diagonal().add_(brightness * contrast * saturation)
        colours = picture.view(3, -1)
        means = colours.mean(1).tolist()
        middle = brightness * sum(w * mean for w, mean in zip(_LUMA, means, strict=True))
        mixed = torch.mm(matrix, colours).add_((1 - contrast) * middle)
        return mixed.clamp_(0, 255).view(picture.shape)


def _as_rgb(value: Any) -> NDArray[np.uint8]:
    if isinstance(value, np.ndarray) and 0 not in value.shape:
        if value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3:
            return value
        if value.dtype in (np.uint16, np.int32) and value.ndim == 2:
            gray = (np.clip(value, 0, 65535) // 257).astype(np.uint8)
            return np.repeat(gray[..., None], 3, 2)
    found = (
        f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
    )
    raise DecodeError("unsupported", f"expected a picture, got {found}")
