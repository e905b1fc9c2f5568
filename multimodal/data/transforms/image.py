"""Pictures for a vision encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimodal.core.settings import flattened
from multimodal.data.decoding.buffers import empty_batch
from multimodal.data.decoding.values import eight_bits
from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.base import require_shares, standardisation
from multimodal.data.transforms.finishing import Standardise, plain_layout, stack_bytes
from multimodal.data.transforms.geometry import Geometry, crop_and_resize, erase
from multimodal.data.transforms.rand_augment import rand_augment

_HEADROOM = 1.4  # of a reduced picture: 44 dB; without any it would be 38
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class ColourJitter:
    """Random changes of a picture's colours.

    Brightness, contrast and saturation are factors drawn from [1 - x, 1 + x] and applied in this
    order, as one linear map of the colours.

    Args:
        brightness: x of the brightness factor, 0 to 1.
        contrast: x of the contrast factor, 0 to 1.
        saturation: x of the saturation factor, 0 to 1.
        grayscale: probability of losing all colour.

    Raises:
        ValueError: if one of them is not in [0, 1].
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    grayscale: float = 0.0

    def __post_init__(self) -> None:
        require_shares(**asdict(self))

    @property
    def _widths(self) -> tuple[float, float, float]:
        return self.brightness, self.contrast, self.saturation

    @property
    def is_random(self) -> bool:
        """Whether draws change anything."""
        return any((*self._widths, self.grayscale))

    def jitter(self, picture: Tensor, random: np.random.Generator) -> Tensor:
        """The changes drawn for one picture ``[3, H, W]`` of values in [0, 255]."""
        *factors, gray = random.random(4).tolist()
        brightness, contrast, saturation = (
            1 + x * (2 * u - 1) for x, u in zip(self._widths, factors, strict=True)
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


@dataclass(frozen=True)
class RandAugment:
    """Changes drawn by RandAugment (Cubuk et al. 2020).

    Args:
        augment_operations: how many, 0 for none.
        augment_magnitude: their strength, 0 to 10.
        augment_spatial: whether turns, shears and shifts are among them; what is aligned with the
            picture would not follow.

    Raises:
        ValueError: if a value is out of its range.
    """

    augment_operations: int = 0
    augment_magnitude: float = 9.0
    augment_spatial: bool = True

    def __post_init__(self) -> None:
        if self.augment_operations < 0 or not 0 <= self.augment_magnitude <= 10:
            raise ValueError(
                "augment_operations must not be negative and augment_magnitude in [0, 10], got "
                f"{self.augment_operations} and {self.augment_magnitude}"
            )


class ImageTransform:
    """Crop, resize, colour jitter, erasing, standardisation.

    Args:
        size: side of the square result, in pixels.
        mean: per channel, of values in [0, 1].
        std: per channel.
        erasing: probability of a rectangle set to the mean.
        interpolation: ``bicubic`` or ``bilinear``.
        border: brightness of the border of a picture shown smaller, 0 (black) to 1 (white).
        reduced: decodes a JPEG to half, a quarter or an eighth of its sides where that is still 1.4
            times what the result needs, which is faster and comes within about 44 dB.
        geometry: crop and mirroring; a share of the area above 1 shows the picture smaller, on a
            border.
        colours: their random changes.
        augment: further random changes, after the crop.

    The fields of the last three are keywords of the constructor (`flattened`).

    Raises:
        ValueError: if a value is out of its range.
    """

    @flattened(geometry=Geometry, colours=ColourJitter, augment=RandAugment)
    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        erasing: float = 0.0,
        interpolation: str = "bicubic",
        border: float = 0.0,
        reduced: bool = False,
        *,
        geometry: Geometry,
        colours: ColourJitter,
        augment: RandAugment,
    ) -> None:
        if interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation must be bicubic or bilinear, got {interpolation!r}")
        require_shares(erasing=erasing, border=border)
        means, deviations = standardisation(mean, std)
        if len(means) != 3:
            raise ValueError(f"mean and std need 3 numbers, got {len(means)}")
        self.size = size
        self.mean, self.std = means.tolist(), deviations.tolist()
        self.geometry = geometry
        self.interpolation = interpolation
        self.reduced = reduced
        self.augment = augment
        self.border = 255.0 * border
        self.colours = colours
        self.erasing = erasing
        self._factor = torch.from_numpy(1 / (255 * deviations)).view(3, 1, 1)
        self._offset = torch.from_numpy(-means / deviations).view(3, 1, 1)
        self.finish = Standardise(
            tuple(self._factor.flatten().tolist()), tuple(self._offset.flatten().tolist())
        )

    def min_size(self, rng: SampleRNG | None, height: int, width: int) -> tuple[int, int]:
        """The smallest height and width of the whole picture that the result can be made of."""
        box = self.geometry.box(rng, height, width)
        factor = _HEADROOM * self.size / min(box.height, box.width)
        return math.ceil(height * factor), math.ceil(width * factor)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample's tensor."""
        return (3, self.size, self.size)

    @property
    def is_random(self) -> bool:
        """Whether draws change the result."""
        return self.geometry.is_random or self._changes_colours

    @property
    def moves_apart(self) -> bool:
        """Whether it moves the picture in a way that no other modality follows."""
        return self.augment.augment_operations > 0 and self.augment.augment_spatial

    @property
    def _changes_colours(self) -> bool:
        return bool(self.colours.is_random or self.erasing or self.augment.augment_operations)

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """One picture.

        Args:
            value: uint8 ``[H, W, 3]``, or greyscale ``[H, W]``: uint8; uint16; int32; float32 in
                [0, 1]. Of int32 beyond 16 bits and of other float32 the smallest value is black and
                the largest white.
            rng: the sample's random choices; None for the central square, unchanged.

        Returns:
            float32 ``[3, size, size]``, standardised.

        Raises:
            DecodeError: if the value is not an image.
        """
        pixels = self.prepare(value, rng)
        return self._standardise(pixels) if pixels.dtype == torch.uint8 else pixels

    def prepare(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """The same, but as uint8 ``[3, size, size]`` where standardisation is all that is left.

        ``collate`` standardises such a picture right into its batch, ``collate_bytes`` leaves it
        to the device.
        """
        pixels = torch.from_numpy(as_rgb(value)).permute(2, 0, 1)
        box = self.geometry.box(rng, *pixels.shape[1:])
        pixels = crop_and_resize(pixels, box, self.size, self.interpolation, self.border)
        if rng is None or not self._changes_colours:
            return pixels
        random = rng.stream("image")
        if self.augment.augment_operations:
            augmented = rand_augment(
                pixels.permute(1, 2, 0).numpy(),
                self.augment.augment_operations,
                self.augment.augment_magnitude,
                self.augment.augment_spatial,
                rng.stream("image.augment"),
            )
            pixels = torch.from_numpy(augmented.copy()).permute(2, 0, 1)
        if not (self.colours.is_random or self.erasing):
            return pixels
        picture = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        picture = self.colours.jitter(picture, random)
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

    def collate_bytes(self, inputs: list[Tensor]) -> tuple[Tensor, None] | None:
        """The batch as uint8, which ``finish`` completes; None where floats are there."""
        if any(picture.dtype != torch.uint8 for picture in inputs):
            return None
        return stack_bytes(inputs), None

    def _standardise(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = torch.empty(pixels.shape)
        return out.copy_(plain_layout(pixels)).mul_(self._factor).add_(self._offset)


def as_rgb(value: Any) -> NDArray[np.uint8]:
    """A decoded picture as uint8 ``[H, W, 3]``: see `ImageTransform.__call__`.

    Raises:
        DecodeError: if the value is not an image.
    """
    if isinstance(value, np.ndarray) and 0 not in value.shape:
        if value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3:
            return value
        if value.dtype in (np.uint8, np.uint16, np.int32, np.float32) and value.ndim == 2:
            return np.repeat(eight_bits(value)[..., None], 3, 2)
    given = (
        f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
    )
    raise DecodeError("unsupported", f"expected a picture, got {given}")
