"""The seeded choices of one sample: crops, captions, masks, noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from multimodal.core.hashing import generator, numbers, stable_hash

_VIEWS = -1  # stands for the epoch in the draws of cached views


@dataclass(frozen=True, slots=True)
class Draw:
    """Names one use of one sample; every random choice about it follows from that name.

    Choices are therefore the same in whichever process, worker, rank or resumed run the sample is
    read, and differ between epochs and between the repeats within one.

    Attributes:
        seed: seed of the run.
        epoch: epoch of the schedule.
        source: name of the sample's source.
        index: the sample's place in its source.
        repeat: which use of the sample within the epoch this is.
        view: the cached view of the sample whose geometry this use has; None for its own.
    """

    seed: int
    epoch: int
    source: str
    index: int
    repeat: int
    view: int | None = None

    @classmethod
    def of_view(cls, seed: int, source: str, index: int, view: int) -> Draw:
        """The choices of a cached view, which no epoch has."""
        return cls(seed, _VIEWS, source, index, view)

    def choose_view(self, views: int) -> int:
        """Which of so many cached views this use gets; the repeats of an epoch take turns."""
        first = stable_hash(self.seed, self.epoch, self.source, self.index, "view")
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
            return Draw.of_view(self.seed, self.source, self.index, self.view).geometry()
        return numbers(self.seed, self.epoch, self.source, self.index, self.repeat, "geometry")

    def pick(self, name: str, count: int) -> int:
        """One of ``range(count)``: a single choice, at a tenth of the cost of a stream."""
        parts = (self.seed, self.epoch, self.source, self.index, self.repeat, name)
        return stable_hash(*parts) % count
