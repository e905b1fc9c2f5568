"""How the numbers of a member are meant: a picture's window, a depth map's unit and optics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimodal.data.decoding.values import DepthMap, depth_values
from multimodal.data.errors import DecodeError

_ENCODINGS = ("plain", "sun_rgbd")
_KINDS = ("image", "depth", "array")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a modality's entry says of the numbers of its members.

    Attributes:
        window: of a picture: the values that become black and white; what is beyond is limited.
            Overrides a DICOM file's own window (in modality values: CT in Hounsfield units).
        unit_m: of a depth map: metres per value; None: the transform's.
        inverse: of a depth map: whether larger values are nearer, as those of most estimators.
        encoding: of a depth map: ``plain``, or ``sun_rgbd``, whose 16 bits are rotated by 3 (Song
            et al. 2015, SUN RGB-D toolbox).
        focal: of a depth map: the metadata key of its camera's focal length in pixels.
        baseline: of a depth map: the metadata key of a stereo baseline in metres.

    Raises:
        ValueError: if a value is out of its range.
    """

    window: tuple[float, float] | None = None
    unit_m: float | None = None
    inverse: bool = False
    encoding: str = "plain"
    focal: str | None = None
    baseline: str | None = None

    def __post_init__(self) -> None:
        if self.window is not None and not (
            len(self.window) == 2 and self.window[0] < self.window[1]
        ):
            raise ValueError(f"window: expected two rising numbers, got {list(self.window)}")
        if self.unit_m is not None and not self.unit_m > 0:
            raise ValueError(f"unit_m: expected a number above 0, got {self.unit_m}")
        if self.encoding not in _ENCODINGS:
            raise ValueError(f"encoding: expected {' or '.join(_ENCODINGS)}, got {self.encoding!r}")

    @property
    def keys(self) -> list[str]:
        """Those of the metadata that are read."""
        return [key for key in (self.focal, self.baseline) if key is not None]

    @property
    def _of_depth(self) -> bool:
        return self != Reading(window=self.window)

    def kind(self, kind: str) -> str:
        """The kind that the members are decoded as: a window needs the numbers as stored."""
        return kind if self.window is None else "array"

    def apply(self, value: Any, metadata: Mapping[str, Any]) -> Any:
        """A decoded value with its meaning.

        Raises:
            DecodeError: if it has no such meaning, or the metadata lack a key.
        """
        if self.window is not None:
            return _windowed(value, self.window)
        if not self._of_depth:
            return value
        values = depth_values(value)
        if self.encoding == "sun_rgbd":
            if values.dtype != np.uint16:
                detail = f"sun_rgbd has 16 bits, got {values.dtype}"
                raise DecodeError("unsupported", detail)
            values = (values >> 3) | (values << 13)
        focal, baseline = (_positive(metadata, key) for key in (self.focal, self.baseline))
        return DepthMap(values, self.unit_m, self.inverse, focal, baseline)


READING_KEYS = tuple(field.name for field in fields(Reading))


def parse_reading(name: str, entry: Mapping[str, Any], kind: str) -> Reading:
    """What a modality's entry says.

    Raises:
        ValueError: if it contradicts itself, or its members hold no pictures or maps.
    """
    given = {key: entry[key] for key in READING_KEYS if entry.get(key) is not None}
    if given.get("window") is not None:
        given["window"] = tuple(given["window"])
    try:
        reading = Reading(**given)
    except ValueError as error:
        raise ValueError(f"modality {name!r}: {error}") from error
    if reading == Reading():
        return reading
    if kind not in _KINDS:
        raise ValueError(
            f"modality {name!r}: {', '.join(given)} is for members of kind {', '.join(_KINDS)}, "
            f"not {kind}"
        )
    if reading.window is not None and reading._of_depth:
        raise ValueError(f"modality {name!r}: a window is for pictures, not for depth maps")
    return reading


def _positive(metadata: Mapping[str, Any], key: str | None) -> float | None:
    if key is None:
        return None
    value = metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
        raise DecodeError("metadata", f"{key!r} must be a number above 0, is {value!r}")
    return float(value)


def _windowed(value: Any, window: tuple[float, float]) -> NDArray[np.uint16]:
    if isinstance(value, np.ndarray) and value.ndim == 3 and len(value) == 1:
        value = value[0]
    if not isinstance(value, np.ndarray) or value.ndim != 2:
        given = getattr(value, "shape", type(value).__name__)
        raise DecodeError("shape", f"a window is for one channel [H, W], got {given}")
    low, high = window
    shown = np.clip((value.astype(np.float64) - low) / (high - low), 0, 1)
    return np.round(shown * 65535).astype(np.uint16)
