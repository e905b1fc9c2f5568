"""Which cached views of a sample a step reads, and whole batches of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimodal.core.batch import Batch
from multimodal.data.errors import BadSampleError
from multimodal.data.loading.frozen_embeddings import FrozenEmbeddings
from multimodal.data.loading.schedule import BatchSpec
from multimodal.data.lru import LRU
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.source import Source

_KEPT = 200_000  # samples whose names and ids are kept: some 50 MB of a process


def views_together(source: Source, frozen: Mapping[str, FrozenEmbeddings]) -> Collection[str]:
    """Those of the cached modalities that a step reads in the same view."""
    taught = any(name not in source.modalities for name in frozen)
    return [name for name in frozen if taught or name not in source.decoder.alone]


def read_views(
    source: Source, index: int, rng: SampleRNG | None, frozen: Mapping[str, FrozenEmbeddings]
) -> tuple[dict[str, Tensor], SampleRNG | None]:
    """The cached embeddings of one sample, and the random choices of the rest of it.

    Modalities that are aligned with a cached one get the geometry and the moment of its view. Where
    a teacher's are among the cached (of a name that the source has not), all of the sample is as
    its view was.

    Raises:
        DecodeError: if the sample could not be embedded.
    """
    if rng is None:
        return {name: table.read(index, 0) for name, table in frozen.items()}, None
    embeddings, rest = {}, rng
    together = views_together(source, frozen)
    for name, table in frozen.items():
        view = rng.choose_view(table.views, None if name in together else name)
        embeddings[name] = table.read(index, view)
        if name not in source.modalities:
            rest = SampleRNG.of_view(rng.seed, rng.source, index, view)
        elif name in together and rest is rng:
            rest = replace(rng, view=view)
    return embeddings, rest


class _Identity(NamedTuple):
    """What a batch says of a sample besides its inputs."""

    key: str
    sample_id: int
    positive_key: int


class CachedBatches:
    """Batches of a source of which every modality is cached: rows of tables, nothing is decoded.

    They equal those that are put together sample by sample, at a tenth of the cost.

    Args:
        source: with its ``frozen`` tables.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._identities: LRU[int, _Identity] = LRU(_KEPT)

    @staticmethod
    def cover(source: Source) -> bool:
        """Whether nothing of the source's samples is to be decoded."""
        cached = all(name in source.frozen for name in source.modalities)
        return cached and not source.decoder.listings

    def batch(self, spec: BatchSpec, seed: int, step: int) -> Batch | None:
        """One rank's batch; None if a sample of it is bad, and has to be replaced."""
        frozen, indices = self.source.frozen, spec.indices
        if not len(indices) or not all(table.all_done(indices) for table in frozen.values()):
            return None
        try:
            identities = [self._identities.get(index, self._identity) for index in indices.tolist()]
        except BadSampleError:
            return None
        keys, sample_ids, positive_keys = zip(*identities, strict=True)
        return Batch(
            inputs={},
            masks={},
            sample_ids=torch.tensor(sample_ids),
            positive_keys=torch.tensor(positive_keys),
            repeats=torch.from_numpy(spec.repeats.astype(np.int64)),
            source=spec.source,
            step=step,
            keys=list(keys),
            embeddings=self._embeddings(spec, seed),
        )

    def _identity(self, index: int) -> _Identity:
        decoded = self.source.decode(index, None, ())
        return _Identity(decoded.key, decoded.sample_id, decoded.positive_key)

    def _embeddings(self, spec: BatchSpec, seed: int) -> dict[str, Tensor]:
        draws = [
            SampleRNG(seed, spec.epoch, spec.source, index, repeat)
            for index, repeat in zip(spec.indices.tolist(), spec.repeats.tolist(), strict=True)
        ]
        together = views_together(self.source, self.source.frozen)
        places: dict[tuple[str | None, int], NDArray[np.int64]] = {}
        embeddings = {}
        for name, table in self.source.frozen.items():
            drawn = (None if name in together else name), table.views
            if drawn not in places:
                places[drawn] = np.array([rng.choose_view(table.views, drawn[0]) for rng in draws])
            embeddings[name] = table.rows(spec.indices, places[drawn])
        return embeddings
