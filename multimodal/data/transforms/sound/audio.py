"""Sounds for a spectrogram encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multimodal.core.settings import flattened
from multimodal.data.decoding.values import Signal, check_rate, require_finite
from multimodal.data.decoding.video import Video
from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.base import Stacked, standardisation
from multimodal.data.transforms.sound.filterbank import FilterBank, FilterBankSettings, resample


@dataclass(frozen=True)
class SoundChanges:
    """Random changes of a sound, and masks on its spectrogram.

    Args:
        time_shift: most that a sound is moved from the middle, in seconds.
        gain_db: loudness changes by up to this much in both directions.
        speeds: playback speeds of which one is drawn, pitch included (Ko et al. 2015: 0.9, 1, 1.1).
        frequency_mask: widest band of filters that is set to the mean (SpecAugment, Park et al.
            2019).
        time_mask: longest run of frames that is set to the mean.

    Raises:
        ValueError: if a value is out of its range.
    """

    time_shift: float = 0.0
    gain_db: float = 0.0
    speeds: Sequence[float] = (1.0,)
    frequency_mask: int = 0
    time_mask: int = 0

    def __post_init__(self) -> None:
        if not self.speeds or not all(0.5 <= speed <= 2 for speed in self.speeds):
            raise ValueError(f"speeds must be between 0.5 and 2, got {list(self.speeds)}")
        for name in ("time_shift", "gain_db", "frequency_mask", "time_mask"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def require_room(self, filters: int, frames: int) -> None:
        """Refuses masks that may leave nothing of a spectrogram.

        Raises:
            ValueError: naming both masks.
        """
        if self.frequency_mask >= filters or self.time_mask >= frames:
            raise ValueError(
                f"frequency_mask={self.frequency_mask} and time_mask={self.time_mask} must "
                f"leave something of {filters} filters and {frames} frames"
            )

    @property
    def any(self) -> bool:
        """Whether draws change anything."""
        masks = self.frequency_mask or self.time_mask
        return bool(self.time_shift or self.gain_db or tuple(self.speeds) != (1.0,) or masks)


class AudioTransform(Stacked):
    """Mono log-mel spectrogram of a fixed number of frames.

    Channels are averaged. A longer sound is cropped to its centre, a shorter one is centred in
    silence; in training both are shifted in time.

    Args:
        num_frames: frames of the result; at 10 ms a frame, 198 are two seconds.
        mean: of the log energies.
        std: of the log energies.
        padded_frames: frames of the result, those beyond ``num_frames`` filled with log energies
            of 0 (ImageBind: 198 and 204); None: ``num_frames``.
        num_clips: windows of a sound, evenly spread from its beginning to its end, outside of
            training; in training one, anywhere. 1 for the middle.
        bank: windows and filters.
        changes: random changes in training.

    The fields of the last two are keywords of the constructor (`flattened`).

    Raises:
        ValueError: if a value is out of its range.
    """

    @flattened(bank=FilterBankSettings, changes=SoundChanges)
    def __init__(
        self,
        num_frames: int = 198,
        mean: float = 0.0,
        std: float = 1.0,
        padded_frames: int | None = None,
        num_clips: int = 1,
        *,
        bank: FilterBankSettings,
        changes: SoundChanges,
    ) -> None:
        padded = num_frames if padded_frames is None else padded_frames
        if padded < num_frames or num_clips < 1:
            raise ValueError(
                f"padded_frames={padded_frames} must be at least num_frames={num_frames}, and "
                f"num_clips={num_clips} at least 1"
            )
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        changes.require_room(bank.num_mel_bins, num_frames)
        standardisation([mean], [std])
        self.sample_rate = bank.sample_rate
        self.filter_bank = FilterBank(bank)
        self.num_samples = bank.window + (num_frames - 1) * bank.hop
        self.padding = padded - num_frames
        self.num_mel_bins, self.num_frames = bank.num_mel_bins, padded
        self.num_clips = num_clips
        self.mean = mean
        self.std = std
        self.changes = changes

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one clip's tensor."""
        return (1, self.num_mel_bins, self.num_frames)

    @property
    def is_random(self) -> bool:
        """Whether draws change the result."""
        return self.changes.any or self.num_clips > 1

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """One spectrogram.

        Args:
            value: a ``Signal`` with at least one channel and one sample; or a ``Video``, of whose
                sound the seconds are taken that its frames are of.
            rng: the sample's random choices; None for the middle, unchanged.

        Returns:
            float32 ``[1, num_mel_bins, num_frames]``, standardised; outside of training, with
            several clips, ``[num_clips, 1, num_mel_bins, num_frames]``.

        Raises:
            DecodeError: if the value is not audio, has an implausible rate, or contains infinity or
                NaN.
        """
        random = rng.stream("audio") if rng is not None else None
        if isinstance(value, Video):
            return self._of_video(value, rng, random)
        require_sound(value)
        if self.num_clips == 1:
            return self._clip(value, random, None)
        if random is not None:
            return self._clip(value, random, float(random.random()))
        return torch.stack([self._clip(value, None, place) for place in self._places()])

    def _places(self) -> list[float]:
        return [number / (self.num_clips - 1) for number in range(self.num_clips)]

    def _of_video(
        self, video: Video, rng: SampleRNG | None, random: np.random.Generator | None
    ) -> Tensor:
        if rng is not None or self.num_clips == 1:
            sound = sound_of(video, rng, self.num_samples / self.sample_rate, self.changes)
            return self._clip(sound, random, None)
        seconds = self.num_samples / self.sample_rate
        clips = [self._clip(video.sound(place, seconds), None, None) for place in self._places()]
        return torch.stack(clips)

    def _clip(
        self, value: Signal, random: np.random.Generator | None, place: float | None
    ) -> Tensor:
        """The window that leaves the share ``place`` of the rest before it; None: the middle."""
        log_mel = self.filter_bank(self._window(value, random, place))
        log_mel = torch.nn.functional.pad(log_mel, (0, 0, 0, self.padding))
        log_mel = log_mel.sub_(self.mean).div_(self.std)
        if random is not None:
            mask_rows(log_mel, self.changes.time_mask, random)
            mask_rows(log_mel.T, self.changes.frequency_mask, random)
        return log_mel.T.contiguous()[None]

    def _window(
        self, value: Signal, random: np.random.Generator | None, place: float | None
    ) -> Tensor:
        """``[num_samples]`` of the sound at our rate, silent where it does not reach."""
        rate, shift, gain = round(value.rate), 0.0, 1.0
        if random is not None:
            rate = round(rate * self.changes.speeds[int(random.integers(len(self.changes.speeds)))])
            shift = float(random.uniform(-1, 1)) * self.changes.time_shift
            gain = 10 ** (float(random.uniform(-1, 1)) * self.changes.gain_db / 20)
        # The cut comes before the resampling, which then has no more to do than needed.
        wanted = math.ceil(self.num_samples * rate / self.sample_rate)
        spare = value.samples.shape[1] - wanted
        inner = spare / 2 if place is None or spare < 0 else place * spare
        start = round(inner + shift * rate)
        start = min(max(start, min(0, spare)), max(0, spare))  # negative: silence before the sound
        part = value.samples[:, max(0, start) : max(0, start) + wanted]
        mono = torch.from_numpy(part.mean(0, dtype=np.float32)).mul_(gain)
        mono = resample(mono, rate, self.sample_rate)
        waveform = torch.zeros(self.num_samples)
        before = max(0, round(-start * self.sample_rate / rate))
        length = min(len(mono), self.num_samples - before)
        waveform[before : before + length] = mono[:length]
        return waveform


def require_sound(value: Any) -> None:
    """Refuses values that are not sounds with samples.

    Raises:
        DecodeError: if the value is not audio, has an implausible rate, or contains infinity or
            NaN.
    """
    if not isinstance(value, Signal) or value.samples.ndim != 2 or value.samples.size == 0:
        raise DecodeError("unsupported", f"expected a sound, got {type(value).__name__}")
    check_rate(value.rate)
    require_finite(value.samples)


def sound_of(
    value: Any, rng: SampleRNG | None, seconds: float, changes: SoundChanges | None = None
) -> Signal:
    """A sound as it is; of a video the seconds of its sound that its frames are of.

    Args:
        value: a ``Signal``, or a ``Video``.
        rng: the sample's random choices; None for the middle of a video.
        seconds: how much of a video's sound is needed.
        changes: whose speeds need more than that.

    Raises:
        DecodeError: if the value is not a sound, or the video has none.
    """
    if isinstance(value, Video):
        fastest = 1.0 if changes is None or rng is None else max(changes.speeds)
        value = value.sound(0.5 if rng is None else rng.moment(), seconds * fastest)
    require_sound(value)
    assert isinstance(value, Signal)
    return value


def mask_rows(spectrogram: Tensor, widest: int, random: np.random.Generator) -> None:
    """Sets up to ``widest`` neighbouring rows to 0, the mean."""
    width = int(random.integers(widest + 1))
    start = int(random.integers(len(spectrogram) - width + 1))
    spectrogram[start : start + width] = 0
