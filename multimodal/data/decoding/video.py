"""Videos by PyAV: headers when samples are decoded, frames when a transform asks for them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimodal.core.extras import module_of
from multimodal.data.errors import DecodeError

# Extension -> demuxer. Only these are tried: others (playlists, say) would open further files.
CONTAINERS = {
    "mp4": "mp4",
    "mov": "mp4",
    "webm": "matroska",
    "mkv": "matroska",
    "avi": "avi",
}


@dataclass(frozen=True, slots=True)
class Video:
    """A video whose frames are still encoded.

    Attributes:
        data: the file.
        container: its demuxer.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        seconds: duration; 0 if the header does not state it.
        rate: frames per second; 0 if the header does not state it.
    """

    data: bytes
    container: str
    height: int
    width: int
    seconds: float
    rate: float

    def frames(self, times: Sequence[float]) -> NDArray[np.uint8]:
        """The frames shown at these times, of a video that stops early the last one.

        Args:
            times: in seconds from the first frame, rising.

        Returns:
            uint8 ``[T, H, W, 3]``.

        Raises:
            DecodeError: with the reason ``corrupt`` or ``empty``.
        """
        frames: list[NDArray[np.uint8]] = []
        latest: Any = None
        try:
            with _open(self.data, self.container) as container:
                stream = container.streams.video[0]
                if times[0] > 0 and stream.time_base:
                    start = stream.start_time or 0
                    # to the key frame before
                    container.seek(int(times[0] / stream.time_base) + start, stream=stream)
                origin = float((stream.start_time or 0) * (stream.time_base or 0))
                for frame in container.decode(stream):
                    moment = 0.0 if frame.time is None else frame.time - origin
                    # The previous frame is shown until the next one.
                    while len(frames) < len(times) and times[len(frames)] < moment - 1e-6:
                        frames.append(_pixels(frame if latest is None else latest))
                    latest = frame
                    if len(frames) == len(times):
                        break
                if latest is not None and len(frames) < len(times):
                    last = _pixels(latest)
                    frames += [last] * (len(times) - len(frames))
        except DecodeError:
            raise
        except Exception as error:  # libraries raise all sorts of errors on damaged input
            raise DecodeError("corrupt", f"the video: {type(error).__name__}: {error}") from error
        if not frames:
            raise DecodeError("empty", "the video has no frames")
        return np.stack(frames)


def open_video(data: bytes, extension: str, max_pixels: int, max_seconds: float) -> Video:
    """Reads a video's header.

    Raises:
        DecodeError: with the reason ``empty``, ``corrupt`` or ``too_large``.
        Exception: PyAV's own, if it is not a video.
    """
    with _open(data, CONTAINERS[extension]) as container:
        if not len(container.streams):  # what a cut header leaves
            raise DecodeError("corrupt", "the file has no streams")
        if not container.streams.video:
            raise DecodeError("empty", "the file has no video")
        stream = container.streams.video[0]
        height, width = int(stream.height), int(stream.width)
        if height * width > max_pixels:
            raise DecodeError("too_large", f"{height * width} is over max_pixels={max_pixels}")
        rate = float(stream.average_rate or 0)
        seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
        if not seconds and container.duration:
            seconds = container.duration / 1e6
        if not seconds and rate:
            seconds = stream.frames / rate
        if seconds > max_seconds:
            raise DecodeError(
                "too_large", f"{seconds:g} s are over max_video_seconds={max_seconds:g}"
            )
        if height < 1 or width < 1:
            raise DecodeError("empty", "the video has no frames")
    return Video(data, CONTAINERS[extension], height, width, seconds, rate)


def _open(data: bytes, container: str) -> Any:
    av = module_of("video", "av", "decoding a video")
    av.logging.set_level(av.logging.PANIC)  # its messages about damaged files become reasons
    return av.open(io.BytesIO(data), mode="r", format=container)


def _pixels(frame: Any) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return pixels
