"""Depth maps at their own aspect, as patches for a ``FlexibleVisionTransformer`` of one channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from multimodal.core.settings import flattened
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.base import require_shares
from multimodal.data.transforms.depth import DepthRange, DepthTransform, of_measured
from multimodal.data.transforms.geometry import Geometry
from multimodal.data.transforms.patches import (
    padded_patches,
    patch_counts,
    patch_grid,
    patches,
)


class DepthPatchTransform:
    """The whole depth map in at most ``max_tokens`` patches: represented, resized, cut.

    Values are those of `DepthTransform`, patches and their places those of `PatchTransform`.
    Mirroring is drawn as the paired picture's.

    Args:
        patch_size: side of a patch in pixels.
        max_tokens: most patches of a map.
        output: the representation, see `DepthTransform`.
        mean: of the result, over measured pixels.
        std: of the result, over measured pixels.
        flip: probability of mirroring left and right.
        distance: see `DepthTransform`.
        dropout: see `DepthTransform`.
        baseline_m: see `DepthTransform`.
        focal: see `DepthTransform`.
        enlarge: whether maps that need fewer patches are enlarged to as many as allowed.
        distances: unit and limits of the raw map.

    The fields of the last are keywords of the constructor (`flattened`).

    Raises:
        ValueError: if a value is out of its range.
    """

    @flattened(distances=DepthRange)
    def __init__(
        self,
        patch_size: int,
        max_tokens: int,
        output: str = "disparity",
        mean: float = 0.0,
        std: float = 1.0,
        flip: float = 0.0,
        distance: float = 0.0,
        dropout: float = 0.0,
        baseline_m: float | None = None,
        focal: float | None = None,
        enlarge: bool = False,
        *,
        distances: DepthRange,
    ) -> None:
        if patch_size < 1 or max_tokens < 1:
            raise ValueError(
                f"patch_size and max_tokens must be at least 1, got {patch_size} and {max_tokens}"
            )
        require_shares(flip=flip)
        self.patch_size = patch_size
        self.max_tokens = max_tokens
        self.flip = flip
        self.enlarge = enlarge
        self.maps = DepthTransform(
            patch_size, output, mean, std, distance, dropout, 0.0, baseline_m, focal,
            geometry=Geometry(), distances=distances,
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the largest map's tensor."""
        return (self.max_tokens, 2 + self.patch_size**2)

    @property
    def is_random(self) -> bool:
        """Whether draws change the result."""
        return self.flip > 0 or self.maps.is_random

    def token_counts(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Patches of maps of ``[N, 2]`` height and width: ``[N]``; 0 where there is none."""
        return patch_counts(sizes, self.patch_size, self.max_tokens, self.enlarge)

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """One depth map.

        Args:
            value: as of `DepthTransform`.
            rng: the sample's random choices; None for none.

        Returns:
            float32 ``[T, 2 + patch_size ** 2]``, T at most ``max_tokens``, row by row: the place of
            a patch's middle as shares of height and width, then its pixels.

        Raises:
            DecodeError: if the value is not a map of one channel, or contains infinity or NaN.
        """
        random = rng.stream("depth") if rng is not None else None
        pair = self.maps.represented(value, random)
        height, width = pair.shape[1:]
        grid = patch_grid(height, width, self.patch_size, self.max_tokens, self.enlarge)
        sides = [side * self.patch_size for side in grid]
        if [height, width] != sides:
            pair = F.interpolate(pair[None], sides, mode="bilinear", antialias=True)[0]
        result = of_measured(pair)
        if rng is not None and self.flip and next(rng.geometry()) < self.flip:
            result = result.flip(-1)
        if random is not None:
            self.maps.drop(result, random)
        return patches(result, self.patch_size)

    def collate(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Padded to the map of most patches, and where patches are real, bool ``[B, T]``."""
        return padded_patches(inputs)
