from __future__ import annotations

import numpy as np
import pytest
import torch

from multimodal.data.transforms.sound.filterbank import (
    FilterBank,
    FilterBankSettings,
    mel_filters,
    resample,
)


def reference(signal, rate, bins, low, high, window_ms=25.0, hop_ms=10.0):
    """Kaldi's filter bank, value by value in float64."""
    window, hop = round(rate * window_ms / 1000), round(rate * hop_ms / 1000)
    size = 1
    while size < window:
        size *= 2

    def mel(hz):
        return 1127.0 * np.log(1.0 + hz / 700.0)

    step = (mel(high) - mel(low)) / (bins + 1)
    rows = []
    for start in range(0, len(signal) - window + 1, hop):
        frame = signal[start : start + window].astype(np.float64)
        frame = frame - frame.mean()
        shaped = np.empty(window)
        for i in range(window):
            taper = 0.5 - 0.5 * np.cos(2 * np.pi * i / (window - 1))
            shaped[i] = (frame[i] - 0.97 * frame[max(i - 1, 0)]) * taper
        times = np.arange(window)
        row = np.zeros(bins)
        for k in range(size // 2):
            power = abs(np.sum(shaped * np.exp(-2j * np.pi * k * times / size))) ** 2
            place = mel(k * rate / size)
            for b in range(bins):
                left = mel(low) + b * step
                if left < place < left + 2 * step:
                    row[b] += power * (1 - abs(place - left - step) / step)
        rows.append(np.log(np.maximum(row, np.finfo(np.float32).eps)))
    return np.array(rows)


@pytest.mark.parametrize(
    ("rate", "bins", "low", "high"),
    [(16000, 128, 20, 8000), (16000, 40, 60, 7000), (8000, 23, 20, 4000)],
)
def test_energies_are_kaldis(rate, bins, low, high):
    random = np.random.default_rng(0)
    time = np.arange(rate // 20) / rate
    signal = np.sin(2 * np.pi * 440 * time) * 0.3 + 0.1 + 0.05 * random.standard_normal(len(time))
    bank = FilterBank(FilterBankSettings(rate, bins, low, None if high == rate / 2 else high))
    found = bank(torch.from_numpy(signal.astype(np.float32)))
    expected = reference(signal.astype(np.float32), rate, bins, low, high)
    assert found.shape == expected.shape == (bank.num_frames(len(signal)), bins)
    assert np.abs(found.numpy() - expected).max() < 1e-3  # float32 against float64, of values to 5


def test_silence_is_at_the_floor_and_batches_are_independent():
    bank = FilterBank(FilterBankSettings(num_mel_bins=80))
    waves = torch.randn(3, 4000)
    waves[1] = 0.7  # a constant is silence: its mean is removed
    together = bank(waves)
    floor = float(np.log(np.finfo(np.float32).eps))
    assert torch.allclose(together[1], torch.tensor(floor), atol=1e-3)
    for i in range(3):
        assert torch.allclose(together[i], bank(waves[i]), atol=1e-5)


def test_filters_cover_the_band_evenly():
    filters = mel_filters(16000, 512, 64, 20, 8000)
    assert filters.shape == (257, 64)
    assert (filters.sum(0) > 0).all()
    # Neighbouring triangles add up to 1 between the first and the last centre.
    centres = filters.argmax(0)
    inside = filters[int(centres[1]) : int(centres[-2])].sum(1)
    assert torch.allclose(inside, torch.ones_like(inside), atol=1e-5)


def test_impossible_bands_are_rejected():
    with pytest.raises(ValueError, match="low_hz < high_hz <= 4000"):
        FilterBank(FilterBankSettings(8000, 23, 20, 8000))
    with pytest.raises(ValueError, match="too short"):
        FilterBank(FilterBankSettings(1000, 23, 20, 400, window_ms=1.0))


@pytest.mark.parametrize(
    ("rate", "new"), [(44100, 16000), (48000, 16000), (8000, 16000), (11025, 16000), (16001, 16000)]
)
def test_a_tone_survives_resampling(rate, new):
    def tone(at):
        time = torch.arange(at, dtype=torch.float64) / at  # a second
        return (torch.sin(2 * torch.pi * 1234 * time) * 0.5 + 0.2).float()

    found = resample(tone(rate), rate, new)
    assert len(found) == new
    middle = slice(new // 10, -new // 10)
    assert (found - tone(new))[middle].abs().max() < 3e-3


def test_what_the_new_rate_cannot_hold_is_removed():
    time = torch.arange(48000, dtype=torch.float64) / 48000
    high = torch.sin(2 * torch.pi * 11000 * time).float()
    assert resample(high, 48000, 16000)[100:-100].abs().max() < 0.01


def test_an_equal_rate_changes_nothing():
    wave = torch.randn(100)
    assert resample(wave, 16000, 16000) is wave
