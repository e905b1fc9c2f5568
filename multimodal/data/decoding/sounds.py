"""Sounds by libsndfile, and those in MP4 containers by FFmpeg."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from multimodal.data.decoding.tracks import decode_track
from multimodal.data.decoding.values import (
    Limits,
    Request,
    Signal,
    check_rate,
    require_finite,
)
from multimodal.data.errors import DecodeError

_FORMATS = ("OGG", "WAV", "WAVEX", "RF64", "FLAC", "MP3", "AIFF")
_UNKNOWN = 1 << 62  # libsndfile's number of frames where the header does not say
_MP3_DELAY = 2 * 1152  # frames that a decoder may leave out at both ends


def decode_sound(data: bytes, request: Request) -> Signal:
    """A sound, with values in about [-1, 1].

    Raises:
        DecodeError: if it is too long, cut, empty, holds NaN, or has an implausible rate.
        Exception: the libraries' own, if it is damaged or no sound.
    """
    if data[4:8] == b"ftyp":
        signal = decode_track(data, "mp4", request.limits)
    else:
        _refuse_cut(data)
        signal = _by_soundfile(data, request.limits)
    if signal.samples.shape[1] == 0:
        raise DecodeError("empty", "the sound has no samples")
    require_finite(signal.samples)
    return signal


def sound_seconds(data: bytes, limits: Limits) -> float:
    """How long a sound is: by its header where that says so, else decoded.

    Raises:
        DecodeError: as `decode_sound`.
        Exception: the libraries' own, if it is damaged or no sound.
    """
    import soundfile

    if data[4:8] != b"ftyp":
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            if sound.frames < _UNKNOWN:
                return int(sound.frames) / int(sound.samplerate)
    signal = decode_track(data, "mp4" if data[4:8] == b"ftyp" else "flac", limits)
    return float(signal.samples.shape[1] / signal.rate)


def _by_soundfile(data: bytes, limits: Limits) -> Signal:
    import soundfile  # and libsndfile, only where sounds are read

    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        if sound.format not in _FORMATS:
            raise DecodeError("unsupported", f"{sound.format} is none of {', '.join(_FORMATS)}")
        check_rate(sound.samplerate)
        if sound.frames >= _UNKNOWN and sound.format == "FLAC":  # written to a pipe
            return decode_track(data, "flac", limits)
        limits.check("max_audio_values", sound.frames * sound.channels)
        samples = sound.read(sound.frames, dtype="float32", always_2d=True)
        missing = sound.frames - len(samples)
        if missing > (_MP3_DELAY if sound.format == "MP3" else 0):
            raise DecodeError("corrupt", f"cut: {missing} of {sound.frames} frames are missing")
        return Signal(np.ascontiguousarray(samples.T), float(sound.samplerate))


def _refuse_cut(data: bytes) -> None:
    """Refuses a sound whose file ends early, of which libsndfile reads what there is."""
    if data[:4] in (b"RIFF", b"FORM") and data[8:12] in (b"WAVE", b"AIFF", b"AIFC"):
        missing = _missing_of_chunks(data, "little" if data[:4] == b"RIFF" else "big")
    elif data[:4] == b"OggS":
        missing = _missing_of_page(data)
    else:
        return
    if missing > 0:
        raise DecodeError("corrupt", f"cut: {missing} bytes are missing")


def _missing_of_chunks(data: bytes, order: Any) -> int:
    """Bytes by which the chunk with the samples goes beyond the end of the file."""
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], order)
        if data[at : at + 4] in (b"data", b"SSND"):
            streamed = size >= 0xFFFFFF00 or size in (0x7FFFFFFF, 0x7FFFF000)
            return 0 if streamed else at + 8 + size - len(data)
        at += 8 + size + size % 2
    return 0


def _missing_of_page(data: bytes) -> int:
    """Bytes that the last page of an Ogg file lacks."""
    page = data.rfind(b"OggS")
    count = data[page + 26] if page + 26 < len(data) else 0
    table = data[page + 27 : page + 27 + count]
    return page + 27 + count + sum(table) - len(data)
