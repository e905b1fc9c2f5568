"""The numeric part of a transform as a graph: waveforms to log energies, maps to representations.

So that the runner has neither filters nor formulas of its own. Cropping, resizing and resampling
stay with the runner.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.data.transforms.depth import DepthTransform
from multimodal.data.transforms.sound.audio import AudioTransform
from multimodal.data.transforms.sound.filterbank import FLOOR, PREEMPHASIS
from multimodal.data.transforms.sound.whisper import FLOOR as WHISPER_FLOOR
from multimodal.data.transforms.sound.whisper import RANGE, WhisperTransform
from multimodal.data.transforms.thermal import ThermalTransform
from multimodal.inference.export.graphs import Graph


def fourier_basis(window: int, fft_size: int) -> Tensor:
    """Cosines and sines of a real Fourier transform: float64 ``[2, fft_size // 2 + 1, window]``."""
    places = torch.arange(window, dtype=torch.float64)
    angles = 2 * math.pi / fft_size * torch.arange(fft_size // 2 + 1)[:, None] * places
    return torch.stack([angles.cos(), angles.sin()])


class LogMel(nn.Module):
    """A waveform ``[T]`` to log energies of filters, by one convolution with windowed sinusoids.

    Args:
        basis: ``[2, bins, window]``: what a window is multiplied by, real and imaginary.
        filters: ``[bins, mels]``.
        hop: samples between windows.
    """

    def __init__(self, basis: Tensor, filters: Tensor, hop: int) -> None:
        super().__init__()
        self.bins, self.hop = basis.shape[1], hop
        self.register_buffer("kernels", basis.flatten(0, 1)[:, None].float())
        self.register_buffer("filters", filters.float())

    def energies(self, wave: Tensor) -> Tensor:
        """``[mels, frames]``."""
        kernels, filters = self.get_buffer("kernels"), self.get_buffer("filters")
        both = F.conv1d(wave[None, None], kernels, stride=self.hop)[0].square()
        return filters.T @ (both[: self.bins] + both[self.bins :])


class KaldiFrontend(LogMel):
    """What `AudioTransform` makes of a window: ``[1, mels, frames]``.

    A window's mean, its pre-emphasis and its taper are linear maps, which the basis contains.
    """

    def __init__(self, transform: AudioTransform) -> None:
        bank = transform.filter_bank
        size = bank.window
        centred = torch.eye(size, dtype=torch.float64) - 1 / size
        before = torch.eye(size, dtype=torch.float64).roll(1, 0)
        before[0] = 0
        before[0, 0] = 1  # the first value stands for the one before it
        emphasised = (torch.eye(size, dtype=torch.float64) - PREEMPHASIS * before) @ centred
        basis = fourier_basis(size, bank.fft_size) * bank.taper.double() @ emphasised
        super().__init__(basis, bank.filters, bank.hop)
        self.mean, self.std, self.padding = transform.mean, transform.std, transform.padding

    def forward(self, wave: Tensor) -> Tensor:
        """``[T]`` to ``[1, mels, frames]``."""
        log_mel = F.pad(self.energies(wave).clamp(min=FLOOR).log(), (0, self.padding))
        return ((log_mel - self.mean) / self.std)[None]


class WhisperFrontend(LogMel):
    """What `WhisperTransform` makes of a sound: ``[mels, frames]``."""

    def __init__(self, transform: WhisperTransform) -> None:
        size = len(transform.taper)
        basis = fourier_basis(size, size) * transform.taper.double()
        super().__init__(basis, transform.filters.T, transform.hop)
        self.mirrored = size // 2

    def forward(self, wave: Tensor) -> Tensor:
        """``[T]``, T above half a window, to ``[mels, T // hop]``."""
        around = F.pad(wave[None], (self.mirrored, self.mirrored), mode="reflect")[0]
        log_mel = self.energies(around)[:, :-1].clamp(min=WHISPER_FLOOR).log10()
        return (torch.maximum(log_mel, log_mel.amax(dim=(0, 1)) - RANGE) + 4) / 4


class PlaneFrontend(nn.Module):
    """What `DepthTransform` and `ThermalTransform` make of a map, before they resize it."""

    def __init__(self, transform: DepthTransform | ThermalTransform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, raw: Tensor, eight_bits: Tensor) -> tuple[Tensor, Tensor]:
        """The representation and the mask of measured pixels, both ``[H, W]``; 0 where nothing is.

        Args:
            raw: float32 ``[H, W]``.
            eight_bits: whether it was of bytes, a scalar bool.
        """
        t = self.transform
        if isinstance(t, ThermalTransform):
            share = ((raw - t.minimum) / (t.maximum - t.minimum)).clamp(0, 1)
            # Every pixel is measured; `eight_bits` says nothing of it.
            return (share - t.mean) / t.std, torch.ones_like(raw) + 0 * eight_bits
        seen = raw > 0
        metres = raw * (t.unit_m or 0.001)
        nearest, farthest = t.range_m
        if t.unit_m is None:
            relative = (1 + 4 * _spread(raw, seen)) * math.sqrt(nearest * farthest / 5)
            metres = torch.where(eight_bits, relative, metres)
        metres = metres.clamp(nearest, farthest)
        made = {
            "stereo": lambda: t.baseline_m * t.focal / metres,
            "disparity": lambda: nearest / metres,
            "depth": lambda: metres / farthest,
            "log_depth": lambda: torch.log(metres / nearest) / math.log(farthest / nearest),
            "relative": lambda: 1 - 0.8 * _spread(metres, seen),
        }[t.output]()
        return torch.where(seen, (made - t.mean) / t.std, 0.0), seen.float()


def _spread(values: Tensor, seen: Tensor) -> Tensor:
    """0 at the least value seen, 1 at the greatest."""
    least = torch.where(seen, values, torch.inf).amin(dim=(0, 1))
    most = torch.where(seen, values, -torch.inf).amax(dim=(0, 1))
    return (values - least) / (most - least).clamp(min=1e-6)


def frontend_of(transform: object) -> Graph | None:
    """The graph in front of a tower's, where the runner needs one."""
    if isinstance(transform, AudioTransform):
        wave = torch.zeros(transform.num_samples)
        return Graph(KaldiFrontend(transform), ["wave"], ["features"], [wave], [{}])
    if isinstance(transform, WhisperTransform):
        length = torch.export.Dim("samples", min=2 * transform.hop, max=1 << 20)
        wave, dynamic = torch.zeros(8000), [{0: length}]
        return Graph(WhisperFrontend(transform), ["wave"], ["features"], [wave], dynamic)
    if isinstance(transform, DepthTransform | ThermalTransform):
        sides = [torch.export.Dim(name, min=1, max=1 << 16) for name in ("height", "width")]
        example = [torch.ones(6, 7), torch.tensor(False)]
        dynamic = [dict(enumerate(sides)), {}]
        names = ["raw", "eight_bits"]
        return Graph(PlaneFrontend(transform), names, ["made", "seen"], example, dynamic)
    return None
