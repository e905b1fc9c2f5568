"""The training loader: a schedule's batches, from any position, at any number of workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import Dataset

from multimodal.core.batch import Batch
from multimodal.data.errors import DataMismatchError, TooManyBadSamplesError
from multimodal.data.loading.cached_views import CachedBatches
from multimodal.data.loading.collate import Sample, check_transforms, collate, load
from multimodal.data.loading.resume_signature import differences, signature
from multimodal.data.loading.schedule import BatchSchedule, BatchSpec, SourceSize
from multimodal.data.loading.tally import Rejection, SampleCounter, named
from multimodal.data.loading.token_lengths import NOTHING_COUNTED, budget_of
from multimodal.data.loading.workers import (
    Steps,
    crosses_as_bytes,
    end_workers,
    make_loader,
    one_thread,
)
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.settings import LoaderSettings, OrderSettings
from multimodal.data.source import Source
from multimodal.data.transforms.base import Transform


class ScheduledLoader:
    """One rank's slices of the batches of a ``BatchSchedule``.

    Each iteration is one epoch. The position counts the batches handed out, regardless of what the
    workers have prefetched, and depends neither on the rank nor on the number of ranks or workers:
    a run resumes with the same batches at any of them, as long as the global batches stay the same.

    A bad sample is counted by reason and logged; the next sample of the source that can be read
    takes its place.

    With ``order.max_tokens`` a batch has as many samples as that allows, of sources whose
    modalities count them; a rank's share is within one sample of the mean, in number and in tokens.

    Args:
        sources: by name; the names enter the seeds of the order and of every draw.
        transforms: by modality.
        batch_size: samples per device and batch, for sources without their own.
        seed: of the order and of every draw.
        rank: which slice of each batch to load.
        world_size: number of slices.
        loading: workers, and how many bad samples are borne.
        order: of the schedule.

    Attributes:
        schedule: the global batches.
        counter: delivered and bad samples of this rank since the loader was made.

    Raises:
        ValueError: by ``BatchSchedule``, ``check_transforms`` and ``budget_of``.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        transforms: Mapping[str, Transform],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        loading: LoaderSettings | None = None,
        order: OrderSettings | None = None,
    ) -> None:
        loading, order = loading or LoaderSettings(), order or OrderSettings()
        for name, source in sources.items():
            check_transforms(name, source.modalities, transforms)
        self._sources = dict(sources)
        self._world_size = world_size
        self.schedule = BatchSchedule(
            seed,
            {
                name: SourceSize(
                    shard_samples=source.table.samples,
                    batch_size=world_size * (source.batch_size or batch_size),
                    repeat=source.repeat,
                    weight=source.weight,
                    starts=source.table.starts,
                    budget=budget_of(source, transforms, order.max_tokens, world_size),
                )
                for name, source in sources.items()
            },
            order.block_shards,
            order.drop_last,
            order.epoch_steps,
        )
        if order.max_tokens and all(s.budget is None for s in self.schedule.sources.values()):
            raise ValueError(NOTHING_COUNTED)
        self.counter = SampleCounter(loading.max_bad_fraction, loading.max_bad_run)
        self._epoch = 0
        self._position = 0  # batches of this epoch handed out
        self._resumed = False
        self._steps = Steps()
        dataset = _TrainingBatches(
            self.schedule, self._sources, transforms, rank, world_size, loading
        )
        self._batches = make_loader(dataset, self._steps, loading, persistent=True)

    def __len__(self) -> int:
        return self.schedule.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        if self._position and not self._resumed:
            self._epoch, self._position = self._epoch + 1, 0
        self._resumed = False
        first = self._epoch * len(self)
        self._steps.span = range(first + self._position, first + len(self))
        for batch, outcomes in self._batches:
            self.counter.add(outcomes, replaced=True)
            self._position += 1
            yield batch
        self.counter.end_epoch(self._epoch)

    def close(self) -> None:
        """Shuts the workers down; another iteration starts new ones."""
        end_workers(self._batches)

    def state_dict(self) -> dict[str, Any]:
        """The position, and what the batches depend on, as plain values."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "signature": signature(self.schedule, self._sources),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after the last batch that the saved loader has handed out.

        Raises:
            DataMismatchError: if the batches would differ from those of the saved run; the message
                says what to set.
        """
        changes = differences(
            state["signature"],
            signature(self.schedule, self._sources),
            self._world_size,
            {name for name, source in self._sources.items() if source.batch_size is not None},
        )
        if changes:
            raise DataMismatchError.mistake(
                "\n  - ".join(
                    ["the data of this run differ from those of the checkpoint:", *changes]
                )
            )
        self._epoch, self._position = state["epoch"], state["position"]
        if self._position >= len(self):  # saved after the last batch of an epoch
            self._epoch, self._position = self._epoch + 1, 0
        self._resumed = True


class _TrainingBatches(Dataset[tuple[Batch, list["Rejection | None"]]]):
    """Step -> this rank's slice of the batch, and the outcome of each position.

    It is what the workers run.
    """

    def __init__(
        self,
        schedule: BatchSchedule,
        sources: Mapping[str, Source],
        transforms: Mapping[str, Transform],
        rank: int,
        world_size: int,
        loading: LoaderSettings,
    ) -> None:
        self.schedule = schedule
        self.sources = sources
        self.transforms = transforms
        self.rank = rank
        self.world_size = world_size
        self.max_bad_run = loading.max_bad_run
        self.as_bytes = crosses_as_bytes(loading)
        self.is_remote = any(source.remote is not None for source in sources.values())
        self.ahead = steps_ahead(schedule)
        self._cached: dict[str, CachedBatches] = {}

    @one_thread()
    def __getitem__(self, step: int) -> tuple[Batch, list[Rejection | None]]:
        spec = self.schedule(step)
        if self.is_remote:
            self._fetch_ahead(step)
        mine = spec.share(self.rank, self.world_size)
        cached = self._of_caches(mine, step)
        if cached is not None:
            return cached, [None] * len(cached)
        places = [
            self._fill(spec.source, spec.epoch, int(index), int(repeat))
            for index, repeat in zip(mine.indices, mine.repeats, strict=True)
        ]
        samples = [sample for sample, _ in places]
        batch = collate(
            samples, self.transforms, spec.source, step, with_metadata=False, as_bytes=self.as_bytes
        )
        return batch, [outcome for _, outcome in places]

    def _of_caches(self, mine: BatchSpec, step: int) -> Batch | None:
        """The batch, where nothing of it is to be decoded and nothing is bad."""
        source = self.sources[mine.source]
        if not CachedBatches.cover(source):
            return None
        if mine.source not in self._cached:
            self._cached[mine.source] = CachedBatches(source)
        return self._cached[mine.source].batch(mine, self.schedule.seed, step)

    def _fetch_ahead(self, step: int) -> None:
        """Fetches the shards of this step in parallel, and starts on those of a later one."""
        for ahead in (0, self.ahead):
            spec = self.schedule(step + ahead)
            self.sources[spec.source].fetch_ahead(spec.indices.tolist())

    def _fill(
        self, name: str, epoch: int, index: int, repeat: int
    ) -> tuple[Sample, Rejection | None]:
        """The sample; or the first after it that can be read, and why it is not the sample."""
        source = self.sources[name]
        tried: list[Rejection] = []
        while len(tried) <= self.max_bad_run:
            rng = SampleRNG(self.schedule.seed, epoch, name, index, repeat)
            sample = load(source, self.transforms, index, rng, frozen=source.frozen)
            if isinstance(sample, Sample):
                return sample, tried[0] if tried else None
            tried.append(sample)
            index = source.next_index(index, sample.whole_shard)
        raise TooManyBadSamplesError(
            f"{len(tried)} consecutive samples of {name!r} could not be read, over "
            f"max_bad_run={self.max_bad_run}; {named(tried[-3:])}"
        )


def steps_ahead(schedule: BatchSchedule) -> int:
    """How many steps ahead remote shards are fetched: half a block.

    A block's shards are all asked for within its first few batches, so they must come while the
    block before is being used up.
    """
    longest = 0.0
    for name, size in schedule.sources.items():
        block = size.num_samples / len(size.shard_samples) * schedule.block_shards
        block = min(block, size.num_samples)
        own_steps = block / size.mean_batch
        longest = max(longest, own_steps * schedule.steps_per_epoch / schedule.batches[name])
    return max(1, int(longest / 2))


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
