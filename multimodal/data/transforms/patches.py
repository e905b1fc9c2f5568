"""Pictures at their own aspect, as patches for a ``FlexibleVisionTransformer``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from multimodal.core.settings import flattened
from multimodal.data.decoding.buffers import empty_batch
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.base import require_shares, standardisation
from multimodal.data.transforms.finishing import PLACE_BYTES, StandardisePatches
from multimodal.data.transforms.image import ColourJitter, as_rgb


class PatchTransform:
    """The whole picture in at most ``max_tokens`` patches: resized, jittered, standardised, cut.

    Both sides become whole numbers of patches, which changes the aspect by less than one of them.

    Args:
        patch_size: side of a patch in pixels.
        max_tokens: most patches of a picture.
        mean: per channel, of values in [0, 1].
        std: per channel.
        flip: probability of mirroring left and right.
        interpolation: ``bicubic`` or ``bilinear``.
        enlarge: whether pictures that need fewer patches are enlarged to as many as allowed.
        colours: their random changes.

    The fields of the last are keywords of the constructor (`flattened`).

    Raises:
        ValueError: if a value is out of its range.
    """

    @flattened(colours=ColourJitter)
    def __init__(
        self,
        patch_size: int,
        max_tokens: int,
        mean: Sequence[float],
        std: Sequence[float],
        flip: float = 0.0,
        interpolation: str = "bicubic",
        enlarge: bool = False,
        *,
        colours: ColourJitter,
    ) -> None:
        if patch_size < 1 or max_tokens < 1:
            raise ValueError(
                f"patch_size and max_tokens must be at least 1, got {patch_size} and {max_tokens}"
            )
        if interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation must be bicubic or bilinear, got {interpolation!r}")
        require_shares(flip=flip)
        means, deviations = standardisation(mean, std)
        if len(means) != 3:
            raise ValueError(f"mean and std need 3 numbers, got {len(means)}")
        self.patch_size = patch_size
        self.max_tokens = max_tokens
        self.mean, self.std = means.tolist(), deviations.tolist()
        self.flip = flip
        self.interpolation = interpolation
        self.enlarge = enlarge
        self.colours = colours
        self._factor = torch.from_numpy(1 / (255 * deviations)).view(3, 1, 1)
        self._offset = torch.from_numpy(-means / deviations).view(3, 1, 1)
        self.finish = StandardisePatches(
            tuple(self._factor.flatten().tolist()), tuple(self._offset.flatten().tolist())
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the largest picture's tensor."""
        return (self.max_tokens, 2 + 3 * self.patch_size**2)

    @property
    def is_random(self) -> bool:
        """Whether draws change the result."""
        return self.flip > 0 or self.colours.is_random

    def token_counts(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Patches of pictures of ``[N, 2]`` height and width: ``[N]``; 0 where there is none."""
        return patch_counts(sizes, self.patch_size, self.max_tokens, self.enlarge)

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """One picture.

        Args:
            value: as of ``ImageTransform``.
            rng: the sample's random choices; None for none.

        Returns:
            float32 ``[T, 2 + 3 * patch_size ** 2]``, T at most ``max_tokens``, row by row: the
            place of a patch's middle as shares of height and width, then its pixels by channel,
            row and column.

        Raises:
            DecodeError: if the value is not an image.
        """
        made = self.prepare(value, rng)
        return self.finish(made) if made.dtype == torch.uint8 else made

    def prepare(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """The same, but where no colours change as bytes ``[T, 8 + 3 * patch_size ** 2]``.

        They are those of the place, two float32, and the pixels before standardisation.

        Raises:
            DecodeError: if the value is not an image.
        """
        pixels = torch.from_numpy(as_rgb(value)).permute(2, 0, 1)
        height, width = pixels.shape[1:]
        grid = patch_grid(height, width, self.patch_size, self.max_tokens, self.enlarge)
        sides = tuple(side * self.patch_size for side in grid)
        if tuple(pixels.shape[1:]) != sides:
            mode = self.interpolation
            pixels = F.interpolate(pixels[None], sides, mode=mode, antialias=True)[0]
        if rng is not None and self.flip and next(rng.geometry()) < self.flip:
            pixels = pixels.flip(-1)
        if rng is None or not self.colours.is_random:
            return _patch_bytes(pixels, self.patch_size)
        picture = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        picture = self.colours.jitter(picture, rng.stream("image"))
        return patches(picture * self._factor + self._offset, self.patch_size)

    def collate(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Padded to the picture of most patches, and where patches are real, bool ``[B, T]``."""
        as_bytes = inputs[0].dtype == torch.uint8
        return padded_patches([self.finish(picture) for picture in inputs] if as_bytes else inputs)

    def collate_bytes(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor] | None:
        """The batch as bytes, which ``finish`` completes; None where floats are there."""
        if any(picture.dtype != torch.uint8 for picture in inputs):
            return None
        return padded_patches(inputs)


def padded_patches(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``[B, T, F]``, 0 behind a picture's own patches, and where there are some."""
    lengths = torch.tensor([len(picture) for picture in inputs])
    longest = max(len(picture) for picture in inputs)
    batch = empty_batch((len(inputs), longest, inputs[0].shape[1]), inputs[0].dtype)
    for picture, place in zip(inputs, batch, strict=True):
        place[: len(picture)] = picture
        place[len(picture) :] = 0
    return batch, torch.arange(longest) < lengths[:, None]


def patch_grid(
    height: int, width: int, patch_size: int, max_tokens: int, enlarge: bool = False
) -> tuple[int, int]:
    """Rows and columns of patches of a picture, at most ``max_tokens`` together.

    Of the grids around the exact scale the one of most patches, of equal ones that whose aspect is
    nearest.

    Args:
        height: of the picture, in pixels.
        width: of the picture.
        patch_size: side of a patch.
        max_tokens: most patches.
        enlarge: whether a picture that needs fewer patches is enlarged.
    """
    scale = math.sqrt(max_tokens * patch_size**2 / (height * width))
    scale = scale if enlarge else min(scale, 1.0)
    rows, columns = height * scale / patch_size, width * scale / patch_size
    best, grid = (0, 0.0), (1, 1)
    for r in (math.floor(rows), math.ceil(rows)):
        for c in (math.floor(columns), math.ceil(columns)):
            # A side of less than a patch is one; the other then has what the budget leaves.
            r_, c_ = max(1, r), max(1, c)
            if r_ * c_ > max_tokens:
                r_, c_ = (1, min(c_, max_tokens)) if r_ == 1 else (r_, c_)
                r_, c_ = (min(r_, max_tokens), 1) if c_ == 1 else (r_, c_)
            if r_ * c_ <= max_tokens:
                rank = (r_ * c_, -abs(math.log(r_ / c_ * width / height)))
                if rank > best:
                    best, grid = rank, (r_, c_)
    return grid


def patch_counts(
    sizes: NDArray[np.int64], patch_size: int, max_tokens: int, enlarge: bool
) -> NDArray[np.int64]:
    """Patches of pictures of ``[N, 2]`` height and width, see `patch_grid`; 0 of those without."""
    kinds, places = np.unique(sizes, axis=0, return_inverse=True)
    counts = [
        math.prod(patch_grid(h, w, patch_size, max_tokens, enlarge)) if h * w else 0
        for h, w in kinds.tolist()
    ]
    return np.array(counts, np.int64)[places.reshape(-1)]


def patches(picture: Tensor, patch_size: int | tuple[int, int], width: int | None = None) -> Tensor:
    """``[C, H, W]`` to ``[T, 2 + C * h * w]``: see `PatchTransform.__call__`.

    Args:
        picture: whose sides are whole numbers of patches.
        patch_size: height and width of a patch, or one number for both.
        width: columns that the shares of the width are of; None: the picture's.
    """
    sides = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    places, pixels = _cut(picture, sides)
    if width is not None:
        places[:, 1] *= picture.shape[2] / width
    return torch.cat([places, pixels], dim=1)


def _patch_bytes(picture: Tensor, patch_size: int) -> Tensor:
    places, pixels = _cut(picture, (patch_size, patch_size))
    made = torch.empty(len(pixels), PLACE_BYTES + pixels.shape[1], dtype=torch.uint8)
    made[:, :PLACE_BYTES] = places.view(torch.uint8)
    made[:, PLACE_BYTES:] = pixels
    return made


def _cut(picture: Tensor, sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Places ``[T, 2]`` float32 and pixels ``[T, C * h * w]``."""
    channels, height, width = picture.shape
    rows, columns = height // sides[0], width // sides[1]
    cut = picture.reshape(channels, rows, sides[0], columns, sides[1])
    pixels = cut.permute(1, 3, 0, 2, 4).reshape(rows * columns, -1)
    down = ((torch.arange(rows) + 0.5) / rows).repeat_interleave(columns)
    right = ((torch.arange(columns) + 0.5) / columns).repeat(rows)
    return torch.stack([down, right], dim=1), pixels
