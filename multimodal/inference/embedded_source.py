"""What embedding a source gives: rows by modality, and what they are of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from multimodal.core import distributed
from multimodal.core.tensor_hashing import content_ids
from multimodal.data.loading.evaluation_loader import EvaluationLoader
from multimodal.data.source import Source

if TYPE_CHECKING:
    from multimodal.inference.embedder import Embedder


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


class EmbeddedBatch(NamedTuple):
    """The same of one batch of it.

    ``positive_keys`` are `EmbeddedSource.keys`, ``shard_keys`` the samples' names in their shards.
    """

    number: int  # of the batch
    embeddings: dict[str, Tensor]
    items: dict[str, Tensor]
    positive_keys: Tensor
    captions: Tensor
    shard_keys: list[str]
    metadata: list[dict[str, Any]]


def places_of(source: Source, keys: Sequence[str], captions: Sequence[int]) -> Tensor:
    """Indices of the samples of ``keys``, which are in the source's order; bad ones are absent."""
    walk = iter(range(len(source)))
    places: list[int] = []
    for key, caption in zip(keys, captions, strict=True):
        places.append(
            places[-1] if caption else next(i for i in walk if source.place(i).key == key)
        )
    return torch.tensor(places)


def embed_batches(
    embedder: Embedder, source: Source, modalities: Collection[str]
) -> Iterator[EmbeddedBatch]:
    """This rank's share of a source's batches, embedded.

    Args:
        embedder: of the model.
        source: the samples.
        modalities: those wanted, joint embeddings among them.
    """
    joint = embedder.model.joint
    loader = EvaluationLoader(
        source,
        embedder.data,
        list(dict.fromkeys(part for name in modalities for part in joint.parts(name))),
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        whole_batches=True,
    )
    for batch in loader:
        embeddings, items = {}, {}
        first = batch.repeats == 0
        owners = first.cumsum(0) - 1  # of the rows: their samples
        for modality in modalities:
            if modality in joint:
                parts = joint.parts(modality)
                ids = [content_ids(batch.inputs[n], batch.masks.get(n)) for n in parts]
                items[modality] = content_ids(torch.stack(ids, dim=1))
                embeddings[modality] = embedder.joint(modality, batch.inputs, batch.masks)
                continue
            inputs, mask = batch.inputs[modality], batch.masks.get(modality)
            # Inputs that several captions share are embedded once.
            shared = modality != source.decoder.multi_caption and not first.all()
            if shared:
                inputs, mask = inputs[first], None if mask is None else mask[first]
            own, vectors = content_ids(inputs, mask), embedder.inputs(modality, inputs, mask)
            items[modality] = own[owners] if shared else own
            embeddings[modality] = vectors[owners] if shared else vectors
        yield EmbeddedBatch(
            batch.step,
            embeddings,
            items,
            batch.positive_keys,
            batch.repeats,
            batch.keys,
            batch.metadata,
        )
