"""Sound tracks by PyAV: of M4A files and of videos."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimodal.core.extras import module_of
from multimodal.data.decoding.values import Limits, Signal, check_rate, require_finite
from multimodal.data.errors import DecodeError

_LEAD_S = 0.2  # before a window: packets that a decoder needs in order to begin
_SLACK_S = 0.1  # by which a whole track may be shorter than its header says


def open_container(data: bytes, demuxer: str, user: str) -> Any:
    """A container, read by one demuxer only: others (playlists, say) would open further files.

    Args:
        data: the file.
        demuxer: FFmpeg's name of it.
        user: what needs it, for the message where PyAV is not installed.
    """
    av = module_of("video", "av", user)
    av.logging.set_level(av.logging.PANIC)  # its messages about damaged files become reasons
    return av.open(io.BytesIO(data), mode="r", format=demuxer)


def decode_track(data: bytes, demuxer: str, limits: Limits) -> Signal:
    """The whole first sound track of a container.

    Args:
        data: the file.
        demuxer: ``mp4`` for M4A (AAC, ALAC), ``flac``.
        limits: the sizes that are accepted.

    Raises:
        DecodeError: if there is none, it is too long, or cut.
        Exception: PyAV's own, if it is damaged.
    """
    with open_container(data, demuxer, "decoding this sound") as container:
        if not container.streams.audio:
            raise DecodeError("empty", "the file has no sound")
        stream = container.streams.audio[0]
        rate, channels = int(stream.rate or 0), int(stream.channels or 0)
        check_rate(rate)
        seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
        limits.check("max_audio_values", seconds * rate * channels)
        parts, count = [], 0
        for _, samples in decoded_blocks(container, stream):
            count += samples.size  # a header may say less than there is
            limits.check("max_audio_values", count)
            parts.append(samples)
    if not parts:
        raise DecodeError("corrupt" if seconds else "empty", "the sound has no samples")
    samples = np.concatenate(parts, axis=1)
    if samples.shape[1] / rate < seconds - _SLACK_S:
        length = f"{samples.shape[1] / rate:.2f} of {seconds:.2f} s"
        raise DecodeError("corrupt", f"cut: only {length} are there")
    return Signal(samples, float(rate))


def track_window(container: Any, start: float, seconds: float, limits: Limits) -> Signal:
    """A part of the first sound track of an open container, silent where the track does not reach.

    Args:
        container: as opened.
        start: in seconds on the container's clock.
        seconds: length of the part.
        limits: the sizes that are accepted.

    Raises:
        DecodeError: if there is no sound, the part is too large, or nothing can be decoded.
        Exception: PyAV's own, if the track is damaged.
    """
    if not container.streams.audio:
        raise DecodeError("missing", "the video has no sound")
    stream = container.streams.audio[0]
    rate, channels = int(stream.rate or 0), int(stream.channels or 0)
    check_rate(rate)
    count = max(1, round(seconds * rate))
    limits.check("max_audio_values", count * channels)
    samples = np.zeros((channels, count), np.float32)
    if start > 0 and stream.time_base:
        container.seek(int(max(0.0, start - _LEAD_S) / stream.time_base), stream=stream)
    has_frames = False
    for moment, block in decoded_blocks(container, stream):
        has_frames = True
        at = round((moment - start) * rate)
        if at >= count:
            break
        part = block[:, max(0, -at) : max(0, count - at)]
        begin = max(0, at)
        samples[:, begin : begin + part.shape[1]] = part
    if not has_frames:
        raise DecodeError("corrupt", "the sound track has no sound")
    require_finite(samples)
    return Signal(samples, float(rate))


def decoded_blocks(container: Any, stream: Any) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Time of its first value in seconds, and ``[channels, T]`` float32, of each block."""
    av = module_of("video", "av", "decoding a sound track")
    resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    for frame in container.decode(stream):
        moment = 0.0 if frame.time is None else float(frame.time)
        for block in resampler.resample(frame):
            yield moment, np.ascontiguousarray(block.to_ndarray(), np.float32)
