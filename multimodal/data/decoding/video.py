"""Videos by PyAV: headers when samples are decoded, frames when a transform asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimodal.data.decoding.tracks import open_container, track_window
from multimodal.data.decoding.values import Limits, Request, Signal
from multimodal.data.errors import DecodeError

_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # that a file may begin with


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
        limits: on its sound.
    """

    data: bytes
    container: str
    height: int
    width: int
    seconds: float
    rate: float
    limits: Limits = field(default_factory=Limits)

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
            with open_container(self.data, self.container, "decoding a video") as container:
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

    def sound(self, place: float, seconds: float) -> Signal:
        """A part of the sound track, on the clock of the frames.

        A part shorter than a clip of frames that begins at the same ``place`` lies within it, and a
        longer one around it.

        Args:
            place: the share of the rest of the video that is before the part, in [0, 1].
            seconds: length of the part; the whole, where the video is shorter.

        Raises:
            DecodeError: with the reason ``missing`` if the video has no sound, ``corrupt`` or
                ``too_large``.
        """
        length = min(seconds, self.seconds) if self.seconds else seconds
        start = place * max(0.0, self.seconds - length)
        try:
            with open_container(self.data, self.container, "decoding a sound track") as container:
                stream = container.streams.video[0]
                origin = float((stream.start_time or 0) * (stream.time_base or 0))
                return track_window(container, origin + start, length, self.limits)
        except DecodeError:
            raise
        except Exception as error:  # libraries raise all sorts of errors on damaged input
            raise DecodeError("corrupt", f"the sound: {type(error).__name__}: {error}") from error

    def check(self) -> None:
        """Decodes a frame at the beginning, the middle and the end, and some of the sound.

        Raises:
            DecodeError: if training could not.
        """
        for share in (0.0, 0.5, 0.99):
            self.frames([share * self.seconds])
        try:
            for place in (0.0, 0.5, 1.0):
                self.sound(place, 0.5)
        except DecodeError as error:
            if error.reason != "missing":  # many videos are silent
                raise


def decode_video(data: bytes, request: Request) -> Video:
    """Reads a video's header.

    Raises:
        DecodeError: with the reason ``empty``, ``corrupt`` or ``too_large``.
        Exception: PyAV's own, if it is damaged.
    """
    demuxer, limits = _demuxer(data), request.limits
    with open_container(data, demuxer, "decoding a video") as container:
        if not len(container.streams):  # what a cut header leaves
            raise DecodeError("corrupt", "the file has no streams")
        if not container.streams.video:
            raise DecodeError("empty", "the file has no video")
        stream = container.streams.video[0]
        height, width = int(stream.height), int(stream.width)
        limits.check("max_pixels", height * width)
        rate = float(stream.average_rate or 0)
        seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
        if not seconds and container.duration:
            seconds = container.duration / 1e6
        if not seconds and rate:
            seconds = stream.frames / rate
        limits.check("max_video_seconds", seconds)
        if height < 1 or width < 1:
            raise DecodeError("empty", "the video has no frames")
    return Video(data, demuxer, height, width, seconds, rate, limits)


def _demuxer(data: bytes) -> str:
    """FFmpeg's name of the container, by its first bytes."""
    if data[4:8] in _MP4_BOXES:
        return "mp4"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    raise DecodeError("corrupt", f"no video of a known kind (begins with {data[:12]!r})")


def _pixels(frame: Any) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return pixels
