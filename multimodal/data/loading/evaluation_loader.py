"""The evaluation loader: every sample of a source, in order, unchanged."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch.utils.data import Dataset

from multimodal.core.batch import Batch
from multimodal.data.loading.collate import Sample, check_transforms, collate, load
from multimodal.data.loading.tally import Rejection, SampleCounter
from multimodal.data.loading.workers import Steps, make_loader, one_thread
from multimodal.data.settings import EvaluationData
from multimodal.data.source import Source


class EvaluationLoader:
    """A whole source in order, without random choices; the last batch may be smaller.

    A bad sample is left out, counted by reason and logged. One of several captions that are all
    kept gives one row each, which share its other modalities; ``Batch.repeats`` counts them.

    Args:
        source: the samples.
        data: how the samples become batches.
        modalities: those wanted; None for all of the source.
        rank: this process loads every ``world_size``-th sample, beginning at this one.
        world_size: number of processes that share the source.
        whole_batches: this process loads every ``world_size``-th batch instead, which may be none:
            each is what one process alone would load, down to the padding; `Batch.step` counts
            them.
        as_bytes: pictures come as bytes, for `finished`.

    Attributes:
        counter: delivered and bad samples.

    Raises:
        ValueError: by ``check_transforms``, if the source lacks one of the modalities, or if it
            has no sample for some rank.
    """

    def __init__(
        self,
        source: Source,
        data: EvaluationData,
        modalities: Collection[str] | None = None,
        rank: int = 0,
        world_size: int = 1,
        whole_batches: bool = False,
        as_bytes: bool = False,
    ) -> None:
        wanted = source.modalities if modalities is None else tuple(modalities)
        unknown = sorted(set(wanted) - set(source.modalities))
        if unknown:
            raise ValueError(
                f"source {source.name!r} has no modality {unknown[0]!r}; it has: "
                f"{', '.join(source.modalities)}"
            )
        if len(source) < world_size and not whole_batches:
            raise ValueError(
                f"source {source.name!r} has {len(source)} samples for {world_size} ranks: "
                "evaluate it on fewer, or leave it out"
            )
        check_transforms(source.name, wanted, data.transforms)
        loading, batch_size = data.loading, data.batch_size
        self.counter = SampleCounter(loading.max_bad_fraction, loading.max_bad_run)
        mine = range(rank, len(source), world_size)
        self._steps = Steps(range(-(-len(mine) // batch_size)))
        if whole_batches:
            mine = range(len(source))
            self._steps = Steps(range(rank, -(-len(mine) // batch_size), world_size))
        dataset = _EvaluationBatches(source, data, wanted, mine, as_bytes)
        self._batches = make_loader(dataset, self._steps, loading, persistent=False)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        for batch, outcomes in self._batches:
            self.counter.add(outcomes, replaced=False)
            if batch is not None:
                yield batch


class _EvaluationBatches(Dataset[tuple["Batch | None", list["Rejection | None"]]]):
    """Number of a batch -> the batch, or None where all of its samples are bad."""

    def __init__(
        self,
        source: Source,
        data: EvaluationData,
        modalities: Collection[str],
        indices: range,
        as_bytes: bool,
    ) -> None:
        self.source = source
        self.transforms = data.transforms
        self.batch_size = data.batch_size
        self.modalities = modalities
        self.indices = indices
        self.as_bytes = as_bytes

    @one_thread()
    def __getitem__(self, number: int) -> tuple[Batch | None, list[Rejection | None]]:
        start = number * self.batch_size
        loaded = [self._load(index) for index in self.indices[start : start + self.batch_size]]
        samples = [row for item in loaded if isinstance(item, list) for row in item]
        outcomes = [item if isinstance(item, Rejection) else None for item in loaded]
        if not samples:
            return None, outcomes
        batch = collate(samples, self.transforms, self.source.name, number, True, self.as_bytes)
        return batch, outcomes

    def _load(self, index: int) -> list[Sample] | Rejection:
        """A row for every caption of a sample; a sample with a bad one is bad."""
        first = load(self.source, self.transforms, index, None, self.modalities)
        if isinstance(first, Rejection):
            return first
        rows = [first]
        for caption in range(1, first.decoded.captions):
            assert self.source.decoder.multi_caption is not None
            kept = [self.source.decoder.multi_caption]
            other = load(self.source, self.transforms, index, None, kept, caption=caption)
            if isinstance(other, Rejection):
                return other
            rows.append(other._replace(inputs={**first.inputs, **other.inputs}))
        return rows
