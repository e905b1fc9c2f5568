"""Thermal pictures for a vision encoder of one channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multimodal.data.draw import Draw
from multimodal.data.errors import DecodeError
from multimodal.data.transforms.base import Stacked, require_finite, standardisation
from multimodal.data.transforms.geometry import Geometry, crop_and_resize, erase


class ThermalTransform(Stacked):
    """Raw counts of an infrared camera to one standardised channel.

    Args:
        size: side of the square result, in pixels.
        minimum: raw value that becomes 0; anything colder counts as this.
        maximum: raw value that becomes 1; anything hotter counts as this.
        mean: of values in [0, 1].
        std: of values in [0, 1].
        scale: range of the random crop's share of the area; [1, 1] for the central square.
        ratio: range of the random crop's width / height.
        flip: probability of mirroring left and right.
        erasing: probability of a rectangle set to the mean.
    """

    def __init__(
        self,
        size: int,
        minimum: float = 0.0,
        maximum: float = 65535.0,
        mean: float = 0.0,
        std: float = 1.0,
        scale: Sequence[float] = (1.0, 1.0),
        ratio: Sequence[float] = (0.75, 1.3333),
        flip: float = 0.0,
        erasing: float = 0.0,
    ) -> None:
        if not minimum < maximum:
            raise ValueError(f"minimum must be under maximum, got {minimum} and {maximum}")
        if not 0 <= erasing <= 1:
            raise ValueError(f"erasing must be between 0 and 1, got {erasing}")
        standardisation([mean], [std])
        self.size = size
        self.minimum = minimum
        self.maximum = maximum
        self.mean = mean
        self.std = std
        self.geometry = Geometry(scale, ratio, flip)
        self.erasing = erasing

    @property
    def is_random(self) -> bool:
        """Whether draws change the result."""
        return self.geometry.is_random or self.erasing > 0

    def __call__(self, value: Any, draw: Draw | None) -> Tensor:
        """One thermal picture.

        Args:
            value: ``[H, W]`` of raw counts; of an 8-bit picture ``[H, W, 3]`` the first channel.
            draw: the sample's random choices; None for the central square, unchanged.

        Returns:
            float32 ``[1, size, size]``, standardised.

        Raises:
            DecodeError: if the value is no picture, or holds infinity or NaN.
        """
        if not isinstance(value, np.ndarray) or value.ndim not in (2, 3) or 0 in value.shape:
            found = getattr(value, "shape", type(value).__name__)
            raise DecodeError("unsupported", f"expected a thermal picture [H, W], got {found}")
        require_finite(value)
        raw = torch.from_numpy((value if value.ndim == 2 else value[..., 0]).astype(np.float32))
        span = self.maximum - self.minimum
        result = raw.sub_(self.minimum).div_(span).clamp_(0, 1).sub_(self.mean).div_(self.std)
        box = self.geometry.box(draw, *raw.shape)
        result = crop_and_resize(result[None], box, self.size, "bilinear").contiguous()
        if draw is not None:
            erase(result, self.erasing, draw.stream("thermal"))
        return result
