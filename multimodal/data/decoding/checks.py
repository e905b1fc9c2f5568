"""What training asks of a value besides that it can be decoded: a motion needs its rate, a video
its frames.

Packing and verifying ask it as well, so that what they take can be trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from multimodal.data.decoding.values import Signal
from multimodal.data.decoding.video import Video
from multimodal.data.errors import DecodeError


def check_value(member: str, kind: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """Refuses a value that no transform of its kind takes.

    Args:
        member: its name, for messages.
        kind: of the member.
        value: as decoded.
        metadata: of the sample.

    Raises:
        DecodeError: with the reason ``shape`` or ``metadata``; of a video whose frames or sound
            cannot be decoded, with that of the decoder.
    """
    try:
        if isinstance(value, Video):
            value.check()
        elif kind == "imu":
            as_motion(value, metadata)
    except DecodeError as error:
        raise DecodeError(error.reason, f"{member!r}: {error.detail}") from error


def as_motion(array: Any, metadata: Mapping[str, Any]) -> Signal:
    """An IMU array as m/s^2 and rad/s, with the rate and the unit that the metadata gives.

    Raises:
        DecodeError: with the reason ``metadata`` or ``shape``.
    """
    rate, scale = metadata.get("rate_hz"), metadata.get("scale", 1.0)
    if rate is None:
        raise DecodeError("metadata", "the JSON has no 'rate_hz'")
    for key, number in (("rate_hz", rate), ("scale", scale)):
        good = isinstance(number, int | float) and not isinstance(number, bool)
        if not good or not 0 < number < float("inf"):
            raise DecodeError("metadata", f"{key!r} must be a number above 0, is {number!r}")
    if not isinstance(array, np.ndarray) or array.ndim != 2:
        given = getattr(array, "shape", type(array).__name__)
        raise DecodeError("shape", f"expected motion [channels, T], got {given}")
    return Signal(array.astype(np.float32) * np.float32(scale), float(rate))
