"""A source, embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multimodal.data.source import Source


@dataclass(frozen=True, slots=True)
class EmbeddedSource:
    """The samples of a source that could be read, in its order; a row for each caption kept.

    Attributes:
        embeddings: modality -> ``[N, D]`` on the CPU; or of tokens ``[N, T, D]``, zeros as padding.
        items: modality -> ``[N]`` int64, equal for samples whose inputs are equal.
        keys: ``[N]`` int64, equal for samples that are right answers of each other.
        indices: ``[N]`` int64, the samples' places in the source.
        captions: ``[N]`` int64, which caption of its sample a row has; all 0 where one is taken.
        metadata: N JSON objects.
    """

    embeddings: dict[str, Tensor]
    items: dict[str, Tensor]
    keys: Tensor
    indices: Tensor
    captions: Tensor
    metadata: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.metadata)

    def samples(self) -> EmbeddedSource:
        """One row for each sample, with its first caption."""
        if not self.captions.any():
            return self
        rows = (self.captions == 0).nonzero().flatten()
        return EmbeddedSource(
            {modality: vectors[rows] for modality, vectors in self.embeddings.items()},
            {modality: ids[rows] for modality, ids in self.items.items()},
            self.keys[rows],
            self.indices[rows],
            self.captions[rows],
            [self.metadata[row] for row in rows.tolist()],
        )


def places_of(source: Source, keys: Sequence[str], captions: Sequence[int]) -> Tensor:
    """Indices of the samples of ``keys``, which are in the source's order; bad ones are absent."""
    walk = iter(range(len(source)))
    places: list[int] = []
    for key, caption in zip(keys, captions, strict=True):
        places.append(
            places[-1] if caption else next(i for i in walk if source.place(i).key == key)
        )
    return torch.tensor(places)
