"""MP3, Opus, AIFF and M4A beside WAV, FLAC and Ogg Vorbis, which are in test_decode."""

from __future__ import annotations

import functools
import struct
import tracemalloc

import numpy as np
import pytest
from data_helpers import audio_bytes, m4a_bytes

from multimodal.data.decoding.decode import Limits, Signal, decode
from multimodal.data.errors import DecodeError

LIMITS = Limits()
RATE = 48_000


def tone(seconds: float = 1.0) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    return 0.5 * np.stack([np.sin(880 * np.pi * time), np.cos(440 * np.pi * time)])


@functools.cache
def sound(member: str, seconds: float = 1.0, silent: bool = False) -> bytes:
    extension = member.rpartition(".")[2].lower()
    samples = tone(seconds) * (not silent)
    if extension == "m4a":
        pytest.importorskip("av")
        return m4a_bytes(samples, RATE, "alac" if "alac" in member else "aac")
    fmt, subtype = {
        "mp3": ("MP3", None), "opus": ("OGG", "OPUS"), "oga": ("OGG", "VORBIS"),
        "aiff": ("AIFF", "PCM_16"), "aif": ("AIFF", "PCM_24"), "wav": ("WAV", "PCM_16"),
        "flac": ("FLAC", None), "ogg": ("OGG", "VORBIS"),
    }[extension]  # fmt: skip
    return audio_bytes(samples, RATE, fmt, subtype=subtype)


def reason(member: str, data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(member, data, limits)
    return caught.value.reason


SOUNDS = ["mp3", "opus", "oga", "aiff", "music.AIF", "m4a", "alac.m4a"]


@pytest.mark.parametrize("member", SOUNDS)
def test_sounds_of_each_format(member):
    data = sound(member)
    value = decode(member, data, LIMITS)
    assert isinstance(value, Signal)
    assert value.rate == RATE
    assert value.samples.dtype == np.float32
    assert value.samples.shape[0] == 2
    assert abs(value.samples.shape[1] - RATE) <= 1024  # AAC has whole packets
    assert np.abs(value.samples[:, 5000:40000] - tone()[:, 5000:40000]).mean() < 0.03
    assert np.array_equal(decode("wav", data, LIMITS).samples, value.samples)  # by content
    assert reason(member, data, Limits(max_audio_values=2 * RATE - 1)) == "too_large"
    decode(member, data, Limits(max_audio_values=2 * (RATE + 1024)))


@pytest.mark.parametrize("member", [*SOUNDS, "wav", "flac", "ogg"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_what_is_cut_short_is_corrupt(member, share):
    data = sound(member)
    assert reason(member, data[: int(share * len(data))]) == "corrupt"


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_streamed_wav_reaches_to_the_end_of_its_file(size):
    data = bytearray(sound("wav"))
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", size)
    assert decode("wav", bytes(data), LIMITS).samples.shape == (2, RATE)


def test_a_flac_of_unstated_length_is_read_to_its_end_within_the_limits():
    pytest.importorskip("av")
    data = bytearray(sound("flac"))
    data[21] &= 0xF0  # the 36 bits of the number of samples in the STREAMINFO block
    data[22:26] = bytes(4)
    assert decode("flac", bytes(data), LIMITS).samples.shape == (2, RATE)
    assert reason("flac", bytes(data), Limits(max_audio_values=RATE)) == "too_large"


@pytest.mark.parametrize("fmt", ["WAV", "AIFF"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_when_it_is_decoded(fmt, value):
    samples = tone(0.1)
    samples[1, 50] = value
    assert reason("wav", audio_bytes(samples, RATE, fmt, subtype="FLOAT")) == "not_finite"


def test_rates_that_no_sound_has():
    assert reason("wav", audio_bytes(np.zeros((1, 999)), 999)) == "unsupported"
    assert reason("wav", audio_bytes(np.zeros((1, 999)), 384_000)) == "unsupported"


def patched(data: bytes, place: int, content: bytes) -> bytes:
    return data[:place] + content + data[place + len(content) :]


@pytest.mark.parametrize("member", ["mp3", "opus", "aiff", "flac", "m4a"])
def test_bombs_take_no_memory(member):
    data = sound(member, 60.0, silent=True)
    tracemalloc.start()
    assert reason(member, data, Limits(max_audio_values=100_000)) == "too_large"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000  # 23 MB when decoded


def test_a_header_that_promises_days_is_believed():
    data = sound("mp3")
    start = next(data.index(tag) for tag in (b"Xing", b"Info") if tag in data)
    assert reason("mp3", patched(data, start + 8, struct.pack(">I", 1 << 21))) == "too_large"


@pytest.mark.parametrize("member", ["m4a", "alac.m4a"])
def test_an_m4a_that_is_longer_than_it_says_is_stopped(member):
    data = sound(member, 3.0)
    places = [n for n in range(len(data)) if data[n : n + 4] == b"mdhd"]
    short = patched(data, places[0] + 20, struct.pack(">I", RATE // 10))
    assert reason(member, short, Limits(max_audio_values=RATE)) == "too_large"


@pytest.mark.parametrize("member", SOUNDS)
def test_damaged_sounds_are_bad_samples(member):
    data = sound(member, 0.2)
    small, outcomes = Limits(max_audio_values=1 << 18), set()
    random = np.random.default_rng(3)
    for _ in range(40):
        damaged = bytearray(data)
        for place in random.integers(min(len(data), 2000), size=3):
            damaged[place] = random.integers(256)
        try:
            decode(member, bytes(damaged), small)
            outcomes.add("decoded")
        except DecodeError as error:
            outcomes.add(error.reason)
    assert outcomes <= {"decoded", "corrupt", "too_large", "unsupported", "empty", "not_finite"}
