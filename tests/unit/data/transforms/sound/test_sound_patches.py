"""Sounds as long as they are: patches of the spectrogram that `AudioTransform` makes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from multimodal.data.decoding.values import Signal
from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.patches import patches
from multimodal.data.transforms.sound.audio import AudioTransform
from multimodal.data.transforms.sound.sound_patches import SoundPatchTransform
from multimodal.models.encoders.flexible import FlexibleVisionTransformer
from multimodal.models.layers.stems import PatchStem
from multimodal.models.layers.transformer import Transformer

BANK = {"num_mel_bins": 16, "mean": -6.0, "std": 4.0}
TRANSFORM = SoundPatchTransform([8, 10], 40, **BANK)
WINDOW, HOP = 400, 160  # at 16 kHz


def sound(samples: int, rate: float = 16000.0, channels: int = 1) -> Signal:
    random = np.random.default_rng(samples)
    return Signal(random.uniform(-0.5, 0.5, (channels, samples)).astype(np.float32), rate)


def test_a_sound_of_the_full_length_is_the_fixed_spectrogram():
    for length in (WINDOW + 39 * HOP, 30000):  # as long, and cropped to its middle
        fixed = AudioTransform(40, **BANK)(sound(length, channels=2), None)
        cut = TRANSFORM(sound(length, channels=2), None)
        torch.testing.assert_close(cut, patches(fixed, (8, 10)))
        assert cut.shape == TRANSFORM.shape == (8, 82)


@pytest.mark.parametrize(
    ("samples", "columns"),
    [(1, 1), (WINDOW + 9 * HOP, 1), (WINDOW + 9 * HOP + 1, 2), (WINDOW + 29 * HOP, 3), (6000, 4)],
)
def test_a_shorter_sound_has_as_many_patches_as_it_needs_and_keeps_its_seconds(samples, columns):
    cut = TRANSFORM(sound(samples), None)
    assert len(cut) == 2 * columns
    padded = np.zeros((1, WINDOW + 39 * HOP), np.float32)
    padded[:, :samples] = sound(samples).samples
    whole = TRANSFORM(Signal(padded, 16000.0), None).reshape(2, 4, 82)
    ours = cut.reshape(2, columns, 82)
    torch.testing.assert_close(ours[..., :2], whole[:, :columns, :2])  # at the same places
    torch.testing.assert_close(ours[..., 2:], whole[:, :columns, 2:])


@pytest.mark.parametrize("rate", [16000.0, 44100.0])
def test_tokens_are_counted_by_the_milliseconds_and_never_too_few(rate):
    lengths = [40, 800, 3300, 5000, 9000, 22050, 60000]
    counts = TRANSFORM.token_counts(np.ceil(1000 * np.array([*lengths, 0]) / rate).astype(np.int64))
    made = [len(TRANSFORM(sound(length, rate), None)) for length in lengths]
    assert counts[-1] == 0
    assert all(0 <= c - m <= 2 for c, m in zip(counts.tolist(), made, strict=False))
    slow = SoundPatchTransform([8, 10], 40, **BANK, speeds=[0.8])
    counts = slow.token_counts(np.ceil(1000 * np.array(lengths) / rate).astype(np.int64))
    drawn = [len(slow(sound(length, rate), SampleRNG(0, 0, "a", 0, 0))) for length in lengths]
    assert all(0 <= c - m <= 2 for c, m in zip(counts.tolist(), drawn, strict=True))


def test_a_batch_of_sounds_is_each_of_them_alone():
    torch.manual_seed(0)
    encoder = FlexibleVisionTransformer(
        [2, 4], 1, partial(PatchStem, patch_size=[8, 10], bias=True, norm=False),
        Transformer(24, 2, 4), pooling="mean",
    )  # fmt: skip
    inputs = [TRANSFORM(sound(samples), None) for samples in (300, 9000, 3000)]
    batch, mask = TRANSFORM.collate(inputs)
    assert mask.sum(dim=1).tolist() == [2, 8, 4]
    features = encoder(batch, mask).features
    for one, own in zip(inputs, features, strict=True):
        torch.testing.assert_close(encoder(one[None]).features[0], own, rtol=1e-5, atol=1e-5)


def test_draws_are_the_samples():
    transform = SoundPatchTransform(
        [8, 10], 40, **BANK, time_shift=0.1, gain_db=6.0, speeds=[0.9, 1.1], frequency_mask=4,
        time_mask=9,
    )  # fmt: skip
    assert transform.is_random
    assert not TRANSFORM.is_random
    given = sound(12000)
    draws = [transform(given, SampleRNG(0, 0, "a", index, 0)) for index in range(4)]
    assert torch.equal(draws[2], transform(given, SampleRNG(0, 0, "a", 2, 0)))
    assert len({draw.numpy().tobytes() for draw in draws}) == 4
    assert transform(sound(200), SampleRNG(0, 0, "a", 1, 0)).isfinite().all()  # masks fit


@pytest.mark.parametrize("sides", [[8], [5, 10], [8, 11], [0, 10], [32, 10]])
def test_patches_that_do_not_divide_the_spectrogram_are_refused(sides):
    with pytest.raises(ValueError, match="expected filters and frames that divide num_mel_bins=16"):
        SoundPatchTransform(sides, 40, **BANK)


def test_what_is_no_sound_is_refused():
    with pytest.raises(DecodeError, match="expected a sound"):
        TRANSFORM(np.zeros((4, 4)), None)
