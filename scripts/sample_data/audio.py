"""Read, trim and store mono sound at 16 kHz."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

RATE = 16_000
SILENCE = 0.02  # of the peak: what counts as silence at the ends
MARGIN = RATE // 100  # kept around the sound: 10 ms
PEAK = 0.9


def read_mono(source: Path | BinaryIO) -> np.ndarray:
    """A sound file as mono float64 ``[T]`` at 16 kHz."""
    samples, rate = soundfile.read(source, always_2d=True)
    return resample(samples.mean(1), rate)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Band-limited resampling to 16 kHz by the Fourier transform, mirrored at the end.

    Args:
        samples: ``[T]``.
        rate: its rate in Hz.
    """
    count = round(len(samples) * RATE / rate)
    mirrored = np.concatenate([samples, samples[::-1]])  # periodic without a jump
    spectrum = np.fft.rfft(mirrored)[: count + 1]
    spectrum = np.pad(spectrum, (0, count + 1 - len(spectrum)))
    return np.fft.irfft(spectrum, 2 * count)[:count] * (count / len(samples))


def trim(samples: np.ndarray) -> np.ndarray:
    """Without silence at the ends, scaled to a peak of ``PEAK``."""
    peak = np.abs(samples).max()
    loud = np.flatnonzero(np.abs(samples) > SILENCE * peak)
    return samples[max(0, loud[0] - MARGIN) : loud[-1] + MARGIN] * (PEAK / peak)


def opus(samples: np.ndarray, level: float) -> bytes:
    """Mono Opus in Ogg; the same samples always give the same bytes.

    Args:
        samples: ``[T]`` in [-1, 1] at 16 kHz.
        level: compression, 0 (large) to 1 (small).
    """
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="OGG", subtype="OPUS", compression_level=level)
    return _tidy_opus(buffer.getvalue())


def _tidy_opus(data: bytes) -> bytes:
    """The same Ogg Opus stream with serial number 0 and without comments.

    Encoders draw the number at random, and libsndfile leaves some 800 bytes for comments.
    Pages are those of RFC 3533, section 6; the second holds the comments (RFC 7845, section 5.2).
    """
    pages, start = [], 0
    while start < len(data):
        table = start + 27
        body = table + data[start + 26]
        end = body + sum(data[table:body])
        header, packets = bytearray(data[start:body]), data[body:end]
        if len(pages) == 1:
            vendor = 12 + int.from_bytes(packets[8:12], "little")
            packets = packets[:vendor] + bytes(4)  # no comments
            header[26:] = bytes([1, len(packets)])
        header[14:18] = bytes(4)  # serial number
        header[22:26] = bytes(4)
        header[22:26] = _ogg_crc(header + packets).to_bytes(4, "little")
        pages.append(bytes(header) + packets)
        start = end
    return b"".join(pages)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


_TABLE = _crc_table()


def _ogg_crc(page: bytes | bytearray) -> int:
    """Ogg's CRC-32: polynomial 0x04C11DB7, neither reflected nor inverted."""
    value = 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ _TABLE[(value >> 24) ^ byte]
    return value
