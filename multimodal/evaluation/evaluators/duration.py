"""The shortcut by length: how much of a sound's name its duration alone gives away."""

from __future__ import annotations

import torch
from torch import Tensor

from multimodal.data.decoding.decode import Signal
from multimodal.data.decoding.video import Video
from multimodal.data.source import Source


def lengths_of(source: Source, indices: Tensor) -> Tensor:
    """``[N, 2]``: seconds of every sound and letters of every text."""
    if not {"audio", "text"} <= set(source.modalities):
        raise ValueError(
            "duration_baseline compares the lengths of sounds and texts: the source needs "
            f"audio and text, it has {', '.join(source.modalities)}"
        )
    lengths = []
    for index in indices.tolist():
        caption, place = divmod(index, len(source))
        values = source.decode(place, None, ("audio", "text"), caption=caption).values
        sound, text = values["audio"], values["text"]
        assert isinstance(sound, Signal | Video)
        if isinstance(sound, Video):
            seconds = sound.seconds
        else:
            seconds = sound.samples.shape[-1] / sound.rate
        lengths.append([seconds, len(str(text))])
    return torch.tensor(lengths, dtype=torch.float64)


def by_duration(lengths: Tensor, asks_sound: bool) -> tuple[Tensor, Tensor]:
    """What a guess by length goes by, asked and offered: how long would this name take to say?

    The line from letters to seconds is fitted to the set itself, in the baseline's favour.
    """
    seconds, letters = lengths.unbind(dim=1)
    design = torch.stack([torch.ones_like(letters), letters], dim=1)
    line = torch.linalg.lstsq(design, seconds[:, None], driver="gelsd").solution
    guessed = (design @ line).squeeze(1)
    return (seconds, guessed) if asks_sound else (guessed, seconds)
