"""Log-mel filter bank energies as Kaldi computes them, and the resampling before them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

PREEMPHASIS = 0.97
FLOOR = torch.finfo(torch.float32).eps  # of the energies, before the logarithm
_ZERO_CROSSINGS = 6  # of the sinc on either side: where the resampling filter ends
_OUTPUTS_AT_ONCE = 64
_ROLLOFF = 0.99  # cut-off of the resampling filter, as a share of the lower Nyquist frequency


@dataclass(frozen=True)
class FilterBankSettings:
    """Windows and filters of a spectrogram.

    Args:
        sample_rate: of the waveforms, in Hz; sounds of another rate are resampled.
        num_mel_bins: number of filters.
        low_hz: where the first filter begins.
        high_hz: where the last filter ends; None for half the sample rate.
        window_ms: length of a window.
        hop_ms: distance between the starts of windows.

    Raises:
        ValueError: if the frequencies do not rise from 0 to half the sample rate, or the windows
            are shorter than a sample.
    """

    sample_rate: int = 16000
    num_mel_bins: int = 128
    low_hz: float = 20.0
    high_hz: float | None = None
    window_ms: float = 25.0
    hop_ms: float = 10.0

    def __post_init__(self) -> None:
        nyquist, low_hz, high_hz = self.sample_rate / 2, self.low_hz, self.highest_hz
        if not 0 <= low_hz < high_hz <= nyquist:
            raise ValueError(
                f"0 <= low_hz < high_hz <= {nyquist:g} is needed, got {low_hz:g} and {high_hz:g}"
            )
        if self.window < 2 or self.hop < 1:
            raise ValueError(f"window_ms={self.window_ms} and hop_ms={self.hop_ms} are too short")

    @property
    def highest_hz(self) -> float:
        """Where the last filter ends."""
        return self.sample_rate / 2 if self.high_hz is None else self.high_hz

    @property
    def window(self) -> int:
        """Samples in a window."""
        return round(self.sample_rate * self.window_ms / 1000)

    @property
    def hop(self) -> int:
        """Samples from one window to the next."""
        return round(self.sample_rate * self.hop_ms / 1000)


class FilterBank:
    """Kaldi's ``compute-fbank-feats`` with Hanning windows and without dither.

    Per window: the mean is removed, pre-emphasis of 0.97 (the first value replaces the one before
    it), Hanning window, power spectrum of the next power of two, triangular filters that are evenly
    spaced in mel = 1127 ln(1 + f / 700), natural logarithm. Only whole windows count
    (``snip-edges``).

    Args:
        settings: windows and filters.

    Attributes:
        window: samples in a window.
        hop: samples from one window to the next.
        fft_size: of a window's spectrum: the next power of two.
        taper: ``[window]``, which every window is multiplied by.
        filters: ``[fft_size // 2 + 1, num_mel_bins]``.
    """

    def __init__(self, settings: FilterBankSettings) -> None:
        self.window, self.hop = settings.window, settings.hop
        self.fft_size = 1 << (self.window - 1).bit_length()
        self.taper = torch.hann_window(self.window, periodic=False)
        self.filters = mel_filters(
            settings.sample_rate,
            self.fft_size,
            settings.num_mel_bins,
            settings.low_hz,
            settings.highest_hz,
        )

    def num_frames(self, samples: int) -> int:
        """Whole windows in a waveform of that many samples."""
        return max(0, 1 + (samples - self.window) // self.hop)

    def __call__(self, waveform: Tensor) -> Tensor:
        """Log energies.

        Args:
            waveform: ``[..., T]`` float32, at least one window long.

        Returns:
            float32 ``[..., frames, num_mel_bins]``.
        """
        frames = waveform.unfold(-1, self.window, self.hop)
        frames = frames - frames.mean(-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
        spectrum = torch.fft.rfft(
            torch.sub(frames, before, alpha=PREEMPHASIS).mul_(self.taper), self.fft_size
        )
        power: Tensor = spectrum.real.square().add_(spectrum.imag.square())
        return (power @ self.filters).clamp_(min=FLOOR).log_()


def mel_filters(
    sample_rate: int, fft_size: int, num_mel_bins: int, low_hz: float, high_hz: float
) -> Tensor:
    """Triangular filters, as a float32 matrix ``[fft_size // 2 + 1, num_mel_bins]``."""

    def mel(hz: Tensor) -> Tensor:
        return 1127 * torch.log1p(hz / 700)

    frequencies = torch.arange(fft_size // 2 + 1, dtype=torch.float64) * sample_rate / fft_size
    low, high = mel(torch.tensor([low_hz, high_hz], dtype=torch.float64))
    edges = low + (high - low) * torch.linspace(0, 1, num_mel_bins + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = mel(frequencies)[:, None]
    filters = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    return filters.clamp(min=0).to(torch.float32)


def resample(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """Band-limited resampling with a Hann-windowed sinc (J. O. Smith, Digital Audio Resampling).

    Args:
        waveform: ``[T]`` float32 at ``rate`` Hz.
        rate: present rate, in Hz.
        new_rate: rate of the result, in Hz.

    Returns:
        ``[ceil(T * new_rate / rate)]`` float32, value i being the signal at i / new_rate seconds.
    """
    divisor = math.gcd(rate, new_rate)
    down, up = rate // divisor, new_rate // divisor
    if down == up:
        return waveform
    length = -(-len(waveform) * up // down)
    periods = -(-length // up)
    half, kernels = _sinc_kernels(down, up)
    # In every period, of `down` values in and `up` out, the same weights apply.
    padded = torch.nn.functional.pad(waveform, (half - 1, half + down * (periods + 1)))
    parts = [
        padded[start:].unfold(0, len(kernel), down)[:periods] @ kernel for start, kernel in kernels
    ]
    return torch.cat(parts, 1).flatten()[:length]


@lru_cache(maxsize=8)
def _sinc_kernels(down: int, up: int) -> tuple[int, list[tuple[int, Tensor]]]:
    """Half the filter's length, and the weights of one period of outputs.

    The weights come as banded matrices of a few outputs each: the input that the band begins with,
    and ``[inputs, outputs]``.
    """
    cutoff = _ROLLOFF * min(1.0, up / down)  # as a share of the input's Nyquist frequency
    half = math.ceil(_ZERO_CROSSINGS / cutoff)
    kernels = []
    for first in range(0, up, _OUTPUTS_AT_ONCE):
        outputs = torch.arange(first, min(first + _OUTPUTS_AT_ONCE, up))
        start, stop = first * down // up, int(outputs[-1]) * down // up + 2 * half
        inputs = torch.arange(start, stop, dtype=torch.float64) - (half - 1)
        distance = inputs[:, None] - outputs.double() * down / up
        reach = (distance * cutoff / _ZERO_CROSSINGS).clamp(-1, 1)
        kernel = torch.sinc(distance * cutoff) * torch.cos(reach * math.pi / 2).square()
        # Every output passes a constant unchanged.
        kernels.append((start, (kernel / kernel.sum(0)).float()))
    return half, kernels
