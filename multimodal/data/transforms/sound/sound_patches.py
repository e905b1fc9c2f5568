"""Spectrograms as long as their sounds, as patches for a ``FlexibleVisionTransformer``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimodal.core.settings import flattened
from multimodal.data.decoding.values import Signal
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.base import standardisation
from multimodal.data.transforms.patches import padded_patches, patches
from multimodal.data.transforms.sound.audio import SoundChanges, mask_rows, sound_of
from multimodal.data.transforms.sound.filterbank import FilterBank, FilterBankSettings, resample


class SoundPatchTransform:
    """A mono log-mel spectrogram of a sound's own length, cut into patches.

    A sound longer than ``num_frames`` is cropped to its middle; a shorter one is padded with
    silence to whole patches, and no further. The place of a patch in time is a share of
    ``num_frames``, so that a second is as long in every sound (Dehghani et al. 2023, NaViT, for
    pictures).

    Args:
        patch_size: filters and frames of a patch, which divide ``num_mel_bins`` and ``num_frames``.
        num_frames: most frames of a sound; at 10 ms a frame, 198 are two seconds.
        mean: of the log energies.
        std: of the log energies.
        bank: windows and filters.
        changes: random changes in training; ``time_shift`` moves the crop of longer sounds.

    The fields of the last two are keywords of the constructor (`flattened`).

    Raises:
        ValueError: if a value is out of its range.
    """

    @flattened(bank=FilterBankSettings, changes=SoundChanges)
    def __init__(
        self,
        patch_size: Sequence[int],
        num_frames: int,
        mean: float = 0.0,
        std: float = 1.0,
        *,
        bank: FilterBankSettings,
        changes: SoundChanges,
    ) -> None:
        sides = tuple(int(side) for side in patch_size)
        whole = (bank.num_mel_bins, num_frames)
        if len(sides) != 2 or any(
            s < 1 or n < s or n % s for s, n in zip(sides, whole, strict=True)
        ):
            raise ValueError(
                f"patch_size={list(sides)}: expected filters and frames that divide "
                f"num_mel_bins={whole[0]} and num_frames={num_frames}"
            )
        changes.require_room(bank.num_mel_bins, num_frames)
        standardisation([mean], [std])
        self.patch_size = (sides[0], sides[1])
        self.num_frames, self.num_mel_bins = num_frames, bank.num_mel_bins
        self.sample_rate, self.window, self.hop = bank.sample_rate, bank.window, bank.hop
        self.filter_bank = FilterBank(bank)
        self.mean, self.std = mean, std
        self.changes = changes

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the longest sound's tensor."""
        filters, frames = self.patch_size
        tokens = self.num_mel_bins // filters * (self.num_frames // frames)
        return (tokens, 2 + filters * frames)

    @property
    def is_random(self) -> bool:
        """Whether draws change the result."""
        return self.changes.any

    def token_counts(self, milliseconds: NDArray[np.int64]) -> NDArray[np.int64]:
        """Patches of sounds of ``[N]`` milliseconds, at the slowest speed; 0 of those without."""
        rate = self.sample_rate / 1000 / min(self.changes.speeds)
        samples = np.ceil(milliseconds * rate)
        frames = 1 + np.ceil(np.maximum(0, samples - self.window) / self.hop)
        columns = np.ceil(np.minimum(frames, self.num_frames) / self.patch_size[1])
        rows = self.num_mel_bins // self.patch_size[0]
        return np.where(milliseconds > 0, rows * columns, 0).astype(np.int64)

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """One sound.

        Args:
            value: as of `AudioTransform`.
            rng: the sample's random choices; None for the middle, unchanged.

        Returns:
            float32 ``[T, 2 + filters * frames]``, rows of the lowest filters first: the place of a
            patch's middle as shares of ``num_mel_bins`` and ``num_frames``, then its values.

        Raises:
            DecodeError: if the value is not audio, has an implausible rate, or contains infinity or
                NaN.
        """
        random = rng.stream("audio") if rng is not None else None
        most = self.window + (self.num_frames - 1) * self.hop
        sound = sound_of(value, rng, most / self.sample_rate, self.changes)
        waveform = self._waveform(sound, most, random)
        frames = 1 + math.ceil(max(0, len(waveform) - self.window) / self.hop)
        frames = min(self.num_frames, math.ceil(frames / self.patch_size[1]) * self.patch_size[1])
        length = self.window + (frames - 1) * self.hop
        padded = torch.nn.functional.pad(waveform, (0, max(0, length - len(waveform))))
        log_mel = self.filter_bank(padded[:length]).sub_(self.mean).div_(self.std)
        if random is not None:
            mask_rows(log_mel, min(self.changes.time_mask, frames - 1), random)
            mask_rows(log_mel.T, self.changes.frequency_mask, random)
        return patches(log_mel.T.contiguous()[None], self.patch_size, self.num_frames)

    def _waveform(self, sound: Signal, most: int, random: np.random.Generator | None) -> Tensor:
        """At most ``most`` samples of the sound at our rate."""
        rate, shift, gain = round(sound.rate), 0.0, 1.0
        if random is not None:
            rate = round(rate * self.changes.speeds[int(random.integers(len(self.changes.speeds)))])
            shift = float(random.uniform(-1, 1)) * self.changes.time_shift
            gain = 10 ** (float(random.uniform(-1, 1)) * self.changes.gain_db / 20)
        wanted = math.ceil(most * rate / self.sample_rate)
        spare = max(0, sound.samples.shape[1] - wanted)
        start = min(max(round(spare / 2 + shift * rate), 0), spare)
        part = sound.samples[:, start : start + wanted]
        mono = torch.from_numpy(part.mean(0, dtype=np.float32)).mul_(gain)
        return resample(mono, rate, self.sample_rate)[:most]

    def collate(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Padded to the longest sound, and where patches are real, bool ``[B, T]``."""
        return padded_patches(inputs)
