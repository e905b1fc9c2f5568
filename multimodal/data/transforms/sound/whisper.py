"""Sounds for Whisper: its log-mel spectrogram, as long as the sound is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multimodal.core.settings import flattened
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.sound.audio import SoundChanges, mask_rows, sound_of
from multimodal.data.transforms.sound.filterbank import resample

SAMPLE_RATE = 16_000
_FFT, _HOP = 400, 160
FLOOR, RANGE = 1e-10, 8.0  # of the powers; decades below the loudest that are kept


class WhisperTransform:
    """The log-mel spectrogram of Whisper's release (Radford et al. 2022, section 2.2).

    Channels are averaged. A sound longer than ``seconds`` is cut, at a random place in training
    and to its middle otherwise; a shorter one stays as it is, and is not padded to 30 s.

    Args:
        num_mel_bins: 80, or 128 for large-v3.
        seconds: longest sound, at most 30.
        changes: random changes in training; ``time_shift`` stays 0, since there is nothing around
            the sound. Masks are set to the spectrogram's mean.

    The fields of the last are keywords of the constructor (`flattened`).

    Raises:
        ValueError: if a value is out of its range.
    """

    @flattened(changes=SoundChanges)
    def __init__(
        self, num_mel_bins: int = 80, seconds: float = 30.0, *, changes: SoundChanges
    ) -> None:
        if not 0.1 <= seconds <= 30:
            raise ValueError(f"seconds={seconds}: expected 0.1 to 30")
        if changes.time_shift:
            raise ValueError(f"time_shift={changes.time_shift}: a sound is not moved here; set 0")
        if num_mel_bins < 1 or changes.frequency_mask >= num_mel_bins:
            raise ValueError(
                f"frequency_mask={changes.frequency_mask} must leave something of "
                f"num_mel_bins={num_mel_bins}"
            )
        self.num_mel_bins = num_mel_bins
        self.sample_rate, self.hop = SAMPLE_RATE, _HOP
        self.num_samples = round(seconds * SAMPLE_RATE)
        self.changes = changes
        self.filters = slaney_filters(num_mel_bins)
        self.taper = torch.hann_window(_FFT)

    @property
    def is_random(self) -> bool:
        """Always: of a longer sound a part is drawn."""
        return True

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """One spectrogram.

        Args:
            value: a ``Signal`` with at least one channel and one sample; or a ``Video``.
            rng: the sample's random choices; None for the middle, unchanged.

        Returns:
            float32 ``[num_mel_bins, frames]``, a frame per 10 ms.

        Raises:
            DecodeError: if the value is not audio, has an implausible rate, or contains infinity or
                NaN.
        """
        value = sound_of(value, rng, self.num_samples / SAMPLE_RATE, self.changes)
        random = rng.stream("audio") if rng is not None else None
        rate, place, gain = round(value.rate), 0.5, 1.0
        if random is not None:
            rate = round(rate * self.changes.speeds[int(random.integers(len(self.changes.speeds)))])
            place = float(random.random())
            gain = 10 ** (float(random.uniform(-1, 1)) * self.changes.gain_db / 20)
        wanted = math.ceil(self.num_samples * rate / SAMPLE_RATE)
        start = round(place * max(0, value.samples.shape[1] - wanted))
        part = value.samples[:, start : start + wanted]
        mono = torch.from_numpy(part.mean(0, dtype=np.float32)).mul_(gain)
        log_mel = self.log_mel(resample(mono, rate, SAMPLE_RATE)[: self.num_samples])
        if random is not None:
            mean = log_mel.mean()
            log_mel -= mean
            mask_rows(log_mel, self.changes.frequency_mask, random)
            mask_rows(log_mel.T, min(self.changes.time_mask, log_mel.shape[1] - 1), random)
            log_mel += mean
        return log_mel

    def log_mel(self, waveform: Tensor) -> Tensor:
        """``[T]`` at 16 kHz to ``[num_mel_bins, T // 160]``, at least one frame.

        The windows are centred, on a waveform that is mirrored at its ends.
        """
        short = _FFT // 2 + 1 - len(waveform)  # mirrored, it needs as much to mirror
        waveform = torch.nn.functional.pad(waveform, (0, max(0, short)))
        spectrum = torch.stft(
            waveform, _FFT, _HOP, window=self.taper, center=True, return_complex=True
        )[:, :-1]
        power = self.filters @ spectrum.abs().square()
        log_mel = power.clamp(min=FLOOR).log10()
        return torch.maximum(log_mel, log_mel.max() - RANGE).add_(4.0).div_(4.0)

    def collate(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """``[B, num_mel_bins, frames]``, padded to the longest, and where they are real."""
        lengths = torch.tensor([sound.shape[1] for sound in inputs])
        batch = torch.nn.utils.rnn.pad_sequence([sound.T for sound in inputs], True)
        mask = torch.arange(batch.shape[1]) < lengths[:, None]
        return batch.transpose(1, 2).contiguous(), mask


def slaney_filters(num_mel_bins: int, fft_size: int = _FFT, rate: int = SAMPLE_RATE) -> Tensor:
    """Triangular filters of equal area ``[num_mel_bins, fft_size // 2 + 1]``.

    Evenly spaced on Slaney's scale (Auditory Toolbox, 1998): linear up to 1 kHz, 15 mels there;
    logarithmic above, 27 mels to a factor of 6.4.
    """
    linear, step = 200 / 3, math.log(6.4) / 27

    def hertz(mels: Tensor) -> Tensor:
        return torch.where(mels < 15, mels * linear, 1000 * torch.exp(step * (mels - 15)))

    top = 15 + math.log(rate / 2 / 1000) / step
    edges = hertz(torch.linspace(0, top, num_mel_bins + 2, dtype=torch.float64))
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = torch.linspace(0, rate / 2, fft_size // 2 + 1, dtype=torch.float64)
    filters = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    return (filters.clamp(min=0) * 2 / (right - left)).float()
