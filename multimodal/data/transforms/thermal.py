"""Thermal pictures for a vision encoder of one channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from multimodal.core.settings import flattened
from multimodal.data.decoding.values import require_finite
from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.base import Stacked, require_shares, standardisation
from multimodal.data.transforms.geometry import Geometry, crop_and_resize, erase


class ThermalTransform(Stacked):
    """Raw counts of an infrared camera to one standardised channel.

    Args:
        size: side of the square result, in pixels.
        minimum: raw value that becomes 0; anything colder counts as this.
        maximum: raw value that becomes 1; anything hotter counts as this.
        mean: of values in [0, 1].
        std: of values in [0, 1].
        erasing: probability of a rectangle set to the mean.
        geometry: crop and mirroring.

    The fields of ``geometry`` are keywords of the constructor (`flattened`).
    """

    @flattened(geometry=Geometry)
    def __init__(
        self,
        size: int,
        minimum: float = 0.0,
        maximum: float = 65535.0,
        mean: float = 0.0,
        std: float = 1.0,
        erasing: float = 0.0,
        *,
        geometry: Geometry,
    ) -> None:
        if not minimum < maximum:
            raise ValueError(f"minimum must be under maximum, got {minimum} and {maximum}")
        require_shares(erasing=erasing)
        standardisation([mean], [std])
        self.size = size
        self.minimum = minimum
        self.maximum = maximum
        self.mean = mean
        self.std = std
        self.geometry = geometry
        self.erasing = erasing

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample's tensor."""
        return (1, self.size, self.size)

    @property
    def is_random(self) -> bool:
        """Whether draws change the result."""
        return self.geometry.is_random or self.erasing > 0

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """One thermal picture.

        Args:
            value: ``[H, W]`` of raw counts; of an 8-bit picture ``[H, W, 3]`` the first channel.
            rng: the sample's random choices; None for the central square, unchanged.

        Returns:
            float32 ``[1, size, size]``, standardised.

        Raises:
            DecodeError: if the value is not an image, or contains infinity or NaN.
        """
        if not isinstance(value, np.ndarray) or value.ndim not in (2, 3) or 0 in value.shape:
            given = getattr(value, "shape", type(value).__name__)
            raise DecodeError("unsupported", f"expected a thermal picture [H, W], got {given}")
        require_finite(value)
        raw = torch.from_numpy((value if value.ndim == 2 else value[..., 0]).astype(np.float32))
        span = self.maximum - self.minimum
        result = raw.sub_(self.minimum).div_(span).clamp_(0, 1).sub_(self.mean).div_(self.std)
        box = self.geometry.box(rng, *raw.shape)
        result = crop_and_resize(result[None], box, self.size, "bilinear").contiguous()
        if rng is not None:
            erase(result, self.erasing, rng.stream("thermal"))
        return result
