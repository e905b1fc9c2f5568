"""Embeds whole sources, shared among ranks, and single values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multimodal.core import distributed
from multimodal.core.tensor_hashing import content_ids
from multimodal.data.loading.evaluation_loader import EvaluationLoader
from multimodal.data.settings import EvaluationData
from multimodal.data.source import Source
from multimodal.data.transforms.base import Transform
from multimodal.models.towers import EmbeddingKind, EmbeddingModel


@dataclass(frozen=True, slots=True)
class EmbeddedSource:
    """The samples of a source that could be read, in its order; a row for each caption kept.

    Attributes:
        embeddings: modality -> ``[N, D]`` on the CPU.
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


class _EmbeddedBatch(NamedTuple):
    number: int  # of the batch
    embeddings: dict[str, Tensor]
    items: dict[str, Tensor]
    positive_keys: Tensor
    captions: Tensor
    shard_keys: list[str]
    metadata: list[dict[str, Any]]


class Embedder:
    """A model with the transforms that feed it.

    Args:
        model: its towers, on the device to embed on; in evaluation mode.
        data: the transforms, and how samples become batches.
        kind: of the embeddings: ``normalized``, ``raw`` or ``scaled`` (`models.Tower.forward`).
    """

    def __init__(
        self,
        model: EmbeddingModel,
        data: EvaluationData,
        kind: EmbeddingKind = "normalized",
    ) -> None:
        self.model = model
        self.data = data
        self.kind = kind

    @property
    def transforms(self) -> Mapping[str, Transform]:
        """Of the values that are embedded, by modality."""
        return self.data.transforms

    def missing(self, modalities: Collection[str]) -> list[str]:
        """The ``modalities`` without a tower."""
        return [modality for modality in modalities if modality not in self.model.towers]

    @torch.no_grad()
    def source(
        self,
        source: Source,
        modalities: Collection[str],
        advance: Callable[[int], None] = lambda _: None,
    ) -> EmbeddedSource:
        """A whole source; under a process group each rank embeds its share of the batches.

        Every rank has to call, and all get the full result, equal to that of one process: a batch
        holds the same samples on any rank. A rank's error is raised on all.

        Args:
            source: the samples; bad ones are left out, and logged.
            modalities: those wanted.
            advance: called with the number of finished samples of this rank.
        """

        def work() -> Iterator[_EmbeddedBatch]:
            for part in self._parts(source, modalities):
                yield part
                advance(int((part.captions == 0).sum()))

        joined = sorted(distributed.all_gather_results(work), key=lambda part: part.number)
        if not joined:
            raise ValueError(f"no sample of {source.name!r}, split {source.split!r}, can be read")
        keys = [key for part in joined for key in part.shard_keys]
        captions = torch.cat([part.captions for part in joined])
        return EmbeddedSource(
            {m: torch.cat([part.embeddings[m] for part in joined]) for m in modalities},
            {m: torch.cat([part.items[m] for part in joined]) for m in modalities},
            torch.cat([part.positive_keys for part in joined]),
            _places(source, keys, captions.tolist()),
            captions,
            [metadata for part in joined for metadata in part.metadata],
        )

    def _parts(self, source: Source, modalities: Collection[str]) -> Iterator[_EmbeddedBatch]:
        loader = EvaluationLoader(
            source,
            self.data,
            modalities,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            whole_batches=True,
        )
        for batch in loader:
            embeddings, items = {}, {}
            first = batch.repeats == 0
            owners = first.cumsum(0) - 1  # of the rows: their samples
            for modality in modalities:
                inputs, mask = batch.inputs[modality], batch.masks.get(modality)
                # Inputs that several captions share are embedded once.
                shared = modality != source.decoder.multi_caption and not first.all()
                if shared:
                    inputs, mask = inputs[first], None if mask is None else mask[first]
                ids, vectors = content_ids(inputs, mask), self.inputs(modality, inputs, mask)
                items[modality] = ids[owners] if shared else ids
                embeddings[modality] = vectors[owners] if shared else vectors
            yield _EmbeddedBatch(
                batch.step,
                embeddings,
                items,
                batch.positive_keys,
                batch.repeats,
                batch.keys,
                batch.metadata,
            )

    @torch.no_grad()
    def values(self, modality: str, values: Sequence[Any]) -> Tensor:
        """Decoded values of one modality: ``[N, D]`` on the CPU.

        Raises:
            DecodeError: if given a value that the modality's transform does not take.
            ValueError: if given a modality that the model does not have.
        """
        if modality not in self.data.transforms or self.missing([modality]):
            known = sorted(set(self.data.transforms) & set(self.model.towers))
            raise ValueError(f"the model does not take {modality!r}; it takes {', '.join(known)}")
        transform = self.transforms[modality]
        rows = []
        for start in range(0, len(values), self.data.batch_size):
            some = [
                transform(value, None) for value in values[start : start + self.data.batch_size]
            ]
            rows.append(self.inputs(modality, *transform.collate(some)))
        return torch.cat(rows) if rows else torch.zeros(0, self.model.embed_dim)

    def inputs(self, modality: str, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """Inputs of one modality as its tower takes them: ``[B, D]`` on the CPU."""
        device = next(self.model.parameters()).device
        on_device = None if mask is None else mask.to(device)
        return self.model.embed(modality, inputs.to(device), on_device, self.kind).cpu()


def _places(source: Source, keys: Sequence[str], captions: Sequence[int]) -> Tensor:
    """Indices of the samples of ``keys``, which are in the source's order; bad ones are absent."""
    walk = iter(range(len(source)))
    places: list[int] = []
    for key, caption in zip(keys, captions, strict=True):
        places.append(
            places[-1] if caption else next(i for i in walk if source.place(i).key == key)
        )
    return torch.tensor(places)
