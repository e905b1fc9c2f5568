"""Sounds for a model of ``transformers``, by its own feature extractor; needs that extra."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multimodal.core.hf_files import import_transformers
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.base import Stacked
from multimodal.data.transforms.sound.audio import sound_of
from multimodal.data.transforms.sound.filterbank import resample


class HuggingFaceSound(Stacked):
    """What the model's feature extractor makes of a window of the sound.

    Rate, kind of features and normalisation all are the extractor's (Whisper, wav2vec2, AST, CLAP).
    In training the window is random, otherwise centred; a shorter sound is padded with silence.

    Args:
        name: a folder that holds a ``preprocessor_config.json``, or a name on the hub.
        seconds: length of the window.
        offline: takes a name on the hub from its local cache only.

    Raises:
        ImportError: if ``transformers`` is not installed.
        ValueError: if there is no extractor of that name, or ``seconds`` is not above 0.
    """

    def __init__(self, name: str, seconds: float, offline: bool = True) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds={seconds}: expected a number above 0")
        self._extract = _load(name, offline)
        self.sample_rate = int(self._extract.sampling_rate)
        self.num_samples = round(seconds * self.sample_rate)

    @property
    def is_random(self) -> bool:
        """Whether draws change the result."""
        return True

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """One sound.

        Args:
            value: a ``Signal`` with at least one channel and one sample; or a ``Video``.
            rng: the sample's random choices; None for the middle.

        Returns:
            float32, as the model takes it: ``[T]`` of waveform models, else features.

        Raises:
            DecodeError: if the value is not audio, or contains infinity or NaN.
        """
        value = sound_of(value, rng, self.num_samples / self.sample_rate)
        rate = round(value.rate)
        wanted = math.ceil(self.num_samples * rate / self.sample_rate)
        spare = max(0, value.samples.shape[1] - wanted)
        place = 0.5 if rng is None else float(rng.stream("audio").random())
        start = round(place * spare)
        part = value.samples[:, start : start + wanted].mean(0, dtype=np.float32)
        wave = resample(torch.from_numpy(part), rate, self.sample_rate)[: self.num_samples]
        wave = torch.nn.functional.pad(wave, (0, self.num_samples - len(wave)))
        made = self._extract(wave.numpy(), sampling_rate=self.sample_rate, return_tensors="np")
        first = next(made[key] for key in ("input_features", "input_values") if key in made)
        return torch.from_numpy(np.ascontiguousarray(first[0], np.float32))


def _load(name: str, offline: bool) -> Any:
    transformers = import_transformers("HuggingFaceSound")
    here = Path(name).expanduser().is_dir()
    path = str(Path(name).expanduser()) if here else name
    try:
        return transformers.AutoFeatureExtractor.from_pretrained(
            path, local_files_only=here or offline, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        hint = "" if here or not offline else "; offline=false would ask the hub"
        reason = str(error).splitlines()[0]
        raise ValueError(f"no feature extractor {name}: {reason}{hint}") from error
