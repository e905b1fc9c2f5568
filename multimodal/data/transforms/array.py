"""Arrays that need no more than a check: precomputed features, any numeric sensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multimodal.data.decoding.values import require_finite
from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.base import Stacked


class ArrayTransform(Stacked):
    """An array of fixed shape, as float32.

    Args:
        shape: what every array must have.
        mean: subtracted from every value.
        std: divides every value.
        noise: standard deviation of noise added to the standardised values in training.
    """

    def __init__(
        self, shape: Sequence[int], mean: float = 0.0, std: float = 1.0, noise: float = 0.0
    ) -> None:
        if not shape or min(shape) < 1:
            raise ValueError(f"shape must be numbers above 0, got {list(shape)}")
        if std <= 0 or noise < 0:
            raise ValueError(f"std must be above 0 and noise not negative, got {std} and {noise}")
        self.shape = tuple(shape)
        self.mean = mean
        self.std = std
        self.noise = noise

    @property
    def is_random(self) -> bool:
        """Whether draws change the result."""
        return self.noise > 0

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """One array.

        Args:
            value: numbers of the given shape.
            rng: the sample's random choices; None for no noise.

        Returns:
            float32 of the given shape.

        Raises:
            DecodeError: if the shape differs, or the array holds infinity or NaN.
        """
        if not isinstance(value, np.ndarray) or value.shape != self.shape:
            given = getattr(value, "shape", type(value).__name__)
            raise DecodeError("shape", f"expected an array {self.shape}, got {given}")
        require_finite(value)
        result = (value.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)
        if rng is not None and self.noise:
            random = rng.stream("array")
            result += np.float32(self.noise) * random.standard_normal(self.shape, np.float32)
        return torch.from_numpy(result)
