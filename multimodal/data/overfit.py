"""One batch for ever: the quickest test that a model can learn at all."""

from __future__ import annotations

from collections.abc import Iterator

from multimodal.data.loader import ScheduledLoader
from multimodal.types import Batch


class RepeatedBatch:
    """The first batch of a loader, as often as the loader has batches.

    Args:
        loader: of which the first batch is read, once.
    """

    def __init__(self, loader: ScheduledLoader) -> None:
        self._loader = loader
        self._batch: Batch | None = None

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        if self._batch is None:
            self._batch = next(iter(self._loader))
            self._loader.close()
        for _ in range(len(self)):
            yield self._batch
