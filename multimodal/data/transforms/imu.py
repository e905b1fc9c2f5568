"""Motion sensors for a time-series encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimodal.data.decoding.values import Signal, require_finite
from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.base import Stacked, standardisation


class IMUTransform(Stacked):
    """A window of fixed rate and length, standardised per channel.

    Signals of another rate are interpolated linearly. A longer one is cut, at a random place in
    training and in its middle otherwise; a shorter one is followed by the mean. The channels are
    triples of axes (accelerometer x, y, z, gyroscope x, y, z), which turn together.

    Args:
        rate_hz: samples per second of the result.
        length: samples of the result.
        mean: per channel.
        std: per channel.
        rotation: the sensor is turned about a random axis by up to this many degrees.
        magnitude: x of a factor drawn from [1 - x, 1 + x] that all values are multiplied by.
        jitter: standard deviation of noise added to the standardised values.
        channels: those of the signal that are taken, by number, so that two modalities can be
            made of one recording; None: all. What moves the sensor moves both alike.
    """

    def __init__(
        self,
        rate_hz: float,
        length: int,
        mean: Sequence[float],
        std: Sequence[float],
        rotation: float = 0.0,
        magnitude: float = 0.0,
        jitter: float = 0.0,
        channels: Sequence[int] | None = None,
    ) -> None:
        means, deviations = standardisation(mean, std)
        if rate_hz <= 0 or length < 1:
            raise ValueError(f"rate_hz and length must be above 0, got {rate_hz} and {length}")
        if rotation and len(means) % 3:
            raise ValueError(f"rotation needs triples of axes, got {len(means)} channels")
        if not 0 <= rotation <= 180 or not 0 <= magnitude < 1 or jitter < 0:
            raise ValueError(
                "rotation must be in [0, 180], magnitude in [0, 1) and jitter not negative, got "
                f"{rotation}, {magnitude} and {jitter}"
            )
        self.rate_hz = rate_hz
        self.length = length
        self.rotation = rotation
        self.magnitude = magnitude
        self.jitter = jitter
        self.channels = None if channels is None else list(channels)
        self.mean = means[:, None]
        self.std = deviations[:, None]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample's tensor."""
        return (len(self.mean), self.length)

    @property
    def is_random(self) -> bool:
        """Always: of a longer signal a window is drawn."""
        return True

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """One window.

        Args:
            value: a ``Signal`` of as many channels as there are means.
            rng: the sample's random choices; None for the middle, unchanged.

        Returns:
            float32 ``[channels, length]``, standardised.

        Raises:
            DecodeError: if the value is not such a signal, or contains infinity or NaN.
        """
        if not isinstance(value, Signal) or value.samples.ndim != 2 or value.samples.size == 0:
            raise DecodeError("unsupported", f"expected a signal, got {type(value).__name__}")
        if self.channels is not None:
            if max(self.channels) >= len(value.samples):
                raise DecodeError(
                    "shape", f"expected channels {self.channels}, got {len(value.samples)} channels"
                )
            value = Signal(value.samples[self.channels], value.rate)
        channels = len(self.mean)
        if len(value.samples) != channels:
            raise DecodeError("shape", f"expected [{channels}, T], got {list(value.samples.shape)}")
        require_finite(value.samples)
        random = rng.stream("imu") if rng is not None else None
        samples = self._window(value, random)
        if random is not None:
            samples = self._move(samples, random)
        samples = (samples - self.mean) / self.std
        if random is not None and self.jitter:
            samples += self.jitter * random.standard_normal(samples.shape, np.float32)
        result = torch.zeros(channels, self.length)
        result[:, : samples.shape[1]] = torch.from_numpy(samples)
        return result

    def _window(self, value: Signal, random: np.random.Generator | None) -> NDArray[np.float32]:
        """``[channels, at most length]`` at our rate."""
        samples = value.samples
        step = value.rate / self.rate_hz  # samples of the signal to one of the result
        # A small tolerance, so that rates like 0.1 do not lose the last value to rounding.
        available = math.floor((samples.shape[1] - 1) / step + 1e-6) + 1
        count = min(self.length, available)
        spare = available - count
        start = int(random.integers(spare + 1)) if random is not None else spare // 2
        if step == 1:
            return samples[:, start : start + count].astype(np.float32)
        places = (start + np.arange(count)) * step
        left = np.minimum(places.astype(np.int64), samples.shape[1] - 1)
        right = np.minimum(left + 1, samples.shape[1] - 1)
        share = (places - left).astype(np.float32)
        return np.asarray(samples[:, left] * (1 - share) + samples[:, right] * share, np.float32)

    def _move(
        self, samples: NDArray[np.float32], random: np.random.Generator
    ) -> NDArray[np.float32]:
        """The signal as a sensor would give it that sits a little differently."""
        axis = random.standard_normal(3)
        angle = math.radians(self.rotation) * random.uniform(-1, 1)
        factor = 1 + self.magnitude * random.uniform(-1, 1)
        if not self.rotation:
            return np.multiply(samples, factor, dtype=np.float32)
        turn = np.asarray(rotation_matrix(axis, angle) * factor, np.float32)
        moved: NDArray[np.float32] = turn @ samples.reshape(-1, 3, samples.shape[1])
        return moved.reshape(samples.shape)


def rotation_matrix(axis: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """``[3, 3]``, the turn about ``axis`` by ``angle`` radians (Rodrigues' formula)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned: NDArray[np.float64] = math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    return np.eye(3) + turned
