"""What members are decoded to, and the sizes up to which they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from multimodal.data.errors import DecodeError

_SLOWEST, _FASTEST = 1000, 192_000  # sampling rates that are accepted, in Hz
_PCM16 = 32768  # counts to 1

# Height and width of an image -> the smallest sufficient ones.
MinSize: TypeAlias = "Callable[[int, int], tuple[int, int]]"


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest values that are decoded; anything larger is a bad sample.

    Attributes:
        max_bytes: of a member in its shard.
        max_pixels: of an image.
        max_audio_values: frames x channels of a sound (the default: ten minutes at 48 kHz stereo).
        max_video_seconds: length of a video; the size of its frames counts as that of an image.
        max_array_bytes: of an array.
        max_text_bytes: of a text or JSON member.
    """

    max_bytes: int = 1 << 28
    max_pixels: int = 1 << 26
    max_audio_values: int = 57_600_000
    max_video_seconds: float = 3600.0
    max_array_bytes: int = 1 << 28
    max_text_bytes: int = 1 << 22

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def check(self, name: str, actual: float) -> None:
        """Refuses sizes over the limit ``name``.

        Raises:
            DecodeError: with the reason ``too_large``.
        """
        if actual > getattr(self, name):
            raise DecodeError(
                "too_large", f"{actual:.15g} is over {name}={getattr(self, name):.15g}"
            )


@dataclass(frozen=True, slots=True)
class Signal:
    """Values over time, with their rate.

    Attributes:
        samples: ``[channels, T]`` float32.
        rate: samples per second, in Hz.
    """

    samples: NDArray[np.float32]
    rate: float


@dataclass(frozen=True, slots=True)
class PCM16:
    """A sound of 16 bits as a cache keeps it: half the bytes of its ``Signal``, the same values.

    Attributes:
        samples: ``[channels, T]`` int16.
        rate: samples per second, in Hz.
    """

    samples: NDArray[np.int16]
    rate: float

    @classmethod
    def of(cls, signal: Signal) -> PCM16 | None:
        """None where a value is none of 16 bits: of lossy codecs, and of files of more bits."""
        counts = signal.samples * np.float32(_PCM16)
        if counts.size and not -_PCM16 <= counts.min() <= counts.max() < _PCM16:
            return None
        samples = counts.astype(np.int16)
        return cls(samples, signal.rate) if np.array_equal(samples, counts) else None

    def signal(self) -> Signal:
        """What it was made of, bit by bit."""
        return Signal(self.samples * np.float32(1 / _PCM16), self.rate)


@dataclass(frozen=True, slots=True)
class DepthMap:
    """A depth map whose unit or camera is known.

    Attributes:
        values: ``[H, W]``, 0 or less where there is no measurement.
        unit_m: metres per value; None: the transform's.
        inverse: whether larger values are nearer.
        focal: focal length of its camera in pixels; None: the transform's.
        baseline_m: of a stereo camera, in metres; None: the transform's.
    """

    values: NDArray[Any]
    unit_m: float | None = None
    inverse: bool = False
    focal: float | None = None
    baseline_m: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """How a member is to be decoded.

    Attributes:
        kind: what it holds, one of ``KINDS``.
        limits: the sizes that are accepted.
        min_size: the smallest size of a picture that is sufficient; None for its own.
    """

    kind: str
    limits: Limits
    min_size: MinSize | None = None


def require_finite(values: NDArray[Any]) -> None:
    """Refuses NaN and infinity.

    Raises:
        DecodeError: with the reason ``not_finite``.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DecodeError("not_finite", "holds NaN or infinite values")


def check_rate(rate: float) -> None:
    """Refuses sampling rates that no sound has.

    Raises:
        DecodeError: with the reason ``unsupported``.
    """
    if not _SLOWEST <= rate <= _FASTEST:
        raise DecodeError("unsupported", f"a sampling rate of {rate:g} Hz")


def depth_values(value: Any) -> NDArray[Any]:
    """One channel ``[H, W]`` of a depth map, also of one that was saved in three equal channels.

    Raises:
        DecodeError: if it has several channels that differ, or is not a map.
    """
    if isinstance(value, np.ndarray) and value.ndim == 3 and 0 not in value.shape:
        if value.shape[2] == 3 and (value == value[..., :1]).all():
            return value[..., 0]
        if value.shape[2] == 3:
            raise DecodeError("unsupported", "expected a depth map [H, W], got a picture in colour")
        if 1 in (value.shape[0], value.shape[2]):
            value = value[0] if len(value) == 1 else value[..., 0]
    if not isinstance(value, np.ndarray) or value.ndim != 2 or 0 in value.shape:
        given = getattr(value, "shape", type(value).__name__)
        raise DecodeError("unsupported", f"expected a depth map [H, W], got {given}")
    return value


def eight_bits(grey: NDArray[Any]) -> NDArray[np.uint8]:
    """Brightness as bytes: of floating or 32-bit values beyond their range, least to most.

    Args:
        grey: uint8, uint16, int32, or float32, which is in [0, 1] or else anywhere.

    Raises:
        DecodeError: if it holds NaN or infinity.
    """
    if grey.dtype == np.uint8:
        return grey
    require_finite(grey)
    least, most = float(grey.min()), float(grey.max())
    if grey.dtype == np.uint16 or (grey.dtype == np.int32 and least >= 0 and most <= 65535):
        return (grey // 257).astype(np.uint8)
    if grey.dtype != np.float32 or least < 0 or most > 1:
        grey = (grey.astype(np.float64) - least) / max(most - least, 1e-9)
    return (grey * 255 + 0.5).astype(np.uint8)
