"""Per-sample random numbers for crops, captions, masks and noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from multimodal.core.hashing import generator, stable_hash, uniform_stream

_VIEWS = -1  # in place of the epoch for cached views


@dataclass(frozen=True, slots=True)
class SampleRNG:
    """Random numbers of one use of one sample, keyed by these attributes.

    They are therefore the same in any process, worker, rank or resumed run, and differ between
    epochs and between repeats within an epoch.

    Attributes:
        seed: seed of the run.
        epoch: epoch of the schedule.
        source: name of the sample's source.
        index: the sample's place in its source.
        repeat: which use of the sample within the epoch this is.
        view: the cached view of the sample whose geometry and moment this use has, if not its own.
    """

    seed: int
    epoch: int
    source: str
    index: int
    repeat: int
    view: int | None = None

    @classmethod
    def of_view(cls, seed: int, source: str, index: int, view: int) -> SampleRNG:
        """The random numbers of a cached view, independent of the epoch.

        Where one of several is drawn (`pick`), a sample's views take them in turn: four views of a
        picture in four styles show each style once.
        """
        return cls(seed, _VIEWS, source, index, view)

    def choose_view(self, views: int, alone: str | None = None) -> int:
        """Which of ``views`` cached views this use gets; the repeats of an epoch rotate.

        Args:
            views: how many there are.
            alone: the modality, if nothing else of the sample is aligned with it: any of its views
                is then met with any of the others'. None: the view of all that is aligned.
        """
        own = () if alone is None else (alone,)
        first = stable_hash(self.seed, self.epoch, self.source, self.index, "view", *own)
        return (first + self.repeat) % views

    def stream(self, name: str) -> np.random.Generator:
        """A new generator, with the same numbers at every call with the same ``name``.

        By convention each modality's name is its own stream.
        """
        return generator(self.seed, self.epoch, self.source, self.index, self.repeat, name)

    def geometry(self) -> Iterator[float]:
        """Uniform numbers in [0, 1), the same at every call.

        They are shared by modalities that are aligned with each other: an image and its depth map
        get the same crop.
        """
        if self.view is not None:
            return SampleRNG.of_view(self.seed, self.source, self.index, self.view).geometry()
        return uniform_stream(
            self.seed, self.epoch, self.source, self.index, self.repeat, "geometry"
        )

    def moment(self) -> float:
        """The share of a video that is before its clip, in [0, 1).

        The frames and the sound of one video have the same.
        """
        if self.view is not None:
            return SampleRNG.of_view(self.seed, self.source, self.index, self.view).moment()
        return float(self.stream("video").random())

    def pick(self, name: str, count: int) -> int:
        """One of ``range(count)``: a single choice, at a tenth of the cost of a stream."""
        if self.epoch == _VIEWS:
            return (stable_hash(self.seed, self.source, self.index, name) + self.repeat) % count
        parts = (self.seed, self.epoch, self.source, self.index, self.repeat, name)
        return stable_hash(*parts) % count
