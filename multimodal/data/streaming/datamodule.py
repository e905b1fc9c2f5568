"""``data=stream``: streaming of resampled shards, for shard lists without a manifest.

Its limitations compared with a manifest: shards are drawn with replacement, so that an epoch is a
number of batches and no promise that each sample comes once; a run cannot be resumed at its place,
only with other draws; the batches depend on the numbers of ranks and workers; a damaged shard is
noticed only when its end is reached, and what came before it has been delivered.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from multimodal.core import distributed
from multimodal.core.batch import Batch
from multimodal.core.hashing import generator, stable_hash
from multimodal.core.settings import flattened
from multimodal.data.datamodule import MultimodalDataModule
from multimodal.data.decoding.decode import Limits
from multimodal.data.errors import TooManyBadSamplesError
from multimodal.data.loading.collate import Sample, check_transforms, collate, load_from
from multimodal.data.loading.tally import Rejection, SampleCounter, named
from multimodal.data.loading.workers import (
    crosses_as_bytes,
    end_of,
    make_loader,
    one_thread,
)
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.settings import LoaderSettings, OrderSettings, ReadSettings
from multimodal.data.source import Source, SourceContext
from multimodal.data.streaming.shard import read_shard
from multimodal.data.streaming.source import StreamSource
from multimodal.data.transforms.base import Transform

log = logging.getLogger(__name__)

LIMITATIONS = (
    "data=stream: shards are drawn with replacement, so an epoch may miss samples and repeat "
    "others; a resumed run makes new draws; batches depend on the numbers of ranks and workers. A "
    "manifest (make_shards.py index) gives all three"
)


class StreamDataModule(MultimodalDataModule):
    """Training batches from streams; validation, where there is any, from manifests.

    Args:
        sources: to train on, by name.
        transforms: by modality.
        batch_size: samples per device and batch, for sources without their own.
        epoch_steps: batches of an epoch, on each device.
        seed: of the draws of shards and samples, and of every random choice about one.
        shuffle: samples that are held back, to be drawn from in any order, in each worker.
        val_sources: with manifests, to validate on; None for no validation.
        eval_batch_size: samples per device and batch in validation.
        loading: workers, and how many bad samples are borne.
        limits: sizes that are decoded; None for those of ``Limits``.

    The fields of ``loading`` are keywords of the constructor (`flattened`).
    """

    @flattened(loading=LoaderSettings)
    def __init__(
        self,
        sources: Mapping[str, StreamSource],
        transforms: Mapping[str, Transform],
        batch_size: int,
        epoch_steps: int,
        seed: int,
        shuffle: int = 1000,
        val_sources: Mapping[str, Source] | None = None,
        eval_batch_size: int = 256,
        limits: Limits | None = None,
        *,
        loading: LoaderSettings,
    ) -> None:
        reading = ReadSettings(limits=limits)
        super().__init__(
            {},
            transforms,
            batch_size,
            seed,
            loading=loading,
            order=OrderSettings(),
            reading=reading,
            val_sources=val_sources,
            eval_batch_size=eval_batch_size,
        )
        if epoch_steps < 1 or shuffle < 1:
            raise ValueError(f"epoch_steps={epoch_steps} and shuffle={shuffle} must be at least 1")
        context = SourceContext.of(reading)
        self.streams = {name: each.within(context, name) for name, each in sources.items()}
        self.steps = epoch_steps
        self.shuffle = shuffle

    def check_batches(self, world_size: int) -> None:
        """Rejects sources whose modalities have no transform; their length is unknown.

        Raises:
            ValueError: naming the modality.
        """
        for name, source in self.streams.items():
            check_transforms(name, source.decoder.modalities, self.transforms)

    def train_dataloader(self) -> StreamLoader:  # type: ignore[override]
        """This rank's own batches."""
        return StreamLoader(self)


class StreamLoader:
    """Each iteration is one epoch, of draws that no other epoch, rank or worker has.

    Args:
        data: the sources and options.

    Attributes:
        counter: delivered and bad samples of this rank; a bad shard counts as one.
    """

    def __init__(self, data: StreamDataModule) -> None:
        log.warning(LIMITATIONS)
        data.check_batches(distributed.world_size())
        self.counter = SampleCounter(data.loading.max_bad_fraction, data.loading.max_bad_run)
        self._data = data
        self._epoch = 0

    def __len__(self) -> int:
        return self._data.steps

    def __iter__(self) -> Iterator[Batch]:
        dataset = _Stream(self._data, self._epoch, distributed.rank())
        # Workers restart with each epoch: what they were reading is discarded.
        batches = iter(make_loader(dataset, None, self._data.loading, persistent=False))
        end = end_of(batches)
        try:
            for batch, rejections in itertools.islice(batches, len(self)):
                self.counter.add([*rejections, *[None] * len(batch)], replaced=False)
                yield batch
        finally:
            end()
        self.counter.end_epoch(self._epoch)
        self._epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """The epoch, which decides the draws."""
        return {"epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with new draws."""
        log.warning("data=stream resumes with other draws, not at the place of the checkpoint")
        self._epoch = state["epoch"] + 1


class _Stream(IterableDataset[tuple[Batch, list[Rejection]]]):
    """Endless batches; what a worker runs."""

    def __init__(self, data: StreamDataModule, epoch: int, rank: int) -> None:
        self.sources = data.streams
        self.transforms = data.transforms
        self.batch_size = data.batch_size
        self.seed = data.seed
        self.shuffle = data.shuffle
        self.max_bad_run = data.loading.max_bad_run
        self.as_bytes = crosses_as_bytes(data.loading)
        self.epoch = epoch
        self.rank = rank

    def __iter__(self) -> Iterator[tuple[Batch, list[Rejection]]]:
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        streams: dict[str, Iterator[Sample | Rejection]] = {}
        names = sorted(self.sources)
        weights = [self.sources[name].weight for name in names]
        shares = [weight / sum(weights) for weight in weights]
        for step in itertools.count(first, every):
            # The same on all ranks, so that all use the same towers.
            choice = generator(self.seed, self.epoch, step, "source").choice(len(names), p=shares)
            name = names[int(choice)]
            if name not in streams:
                streams[name] = self._samples(name, first)
            size = self.sources[name].batch_size or self.batch_size
            with one_thread():
                samples, rejections = self._take(streams[name], size)
                batch = collate(samples, self.transforms, name, step, False, self.as_bytes)
                yield batch, rejections

    def _take(
        self, stream: Iterator[Sample | Rejection], size: int
    ) -> tuple[list[Sample], list[Rejection]]:
        samples: list[Sample] = []
        rejections: list[Rejection] = []
        run: list[Rejection] = []
        while len(samples) < size:
            item = next(stream)
            if isinstance(item, Sample):
                samples.append(item)
                run = []
                continue
            rejections.append(item)
            run.append(item)
            if len(run) > self.max_bad_run:
                raise TooManyBadSamplesError(
                    f"{len(run)} samples or shards in a row are bad, over "
                    f"max_bad_run={self.max_bad_run}; {named(run[-3:])}"
                )
        return samples, rejections

    def _samples(self, name: str, worker: int) -> Iterator[Sample | Rejection]:
        """Samples of shards that are drawn with replacement, shuffled within a buffer."""
        from webdataset.filters import _shuffle
        from webdataset.shardlists import ResampledShards

        source = self.sources[name]
        seed = stable_hash(self.seed, self.epoch, name, self.rank, worker)
        urls = ResampledShards(source.urls, deterministic=True, worker_seed=lambda: seed)
        raw = (item for entry in urls for item in read_shard(name, entry["url"]))
        shuffled = _shuffle(raw, self.shuffle, self.shuffle // 10 or 1, random.Random(seed))
        for number, item in enumerate(shuffled):
            if isinstance(item, Rejection):
                yield item
                continue
            index = stable_hash(item.shard, item.keys[0])
            rng = SampleRNG(self.seed, self.epoch, f"{name}/{self.rank}/{worker}", index, number)
            yield load_from(source.decoder, self.transforms, item, rng)
