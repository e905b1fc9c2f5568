"""The data of a run for Lightning: sources, transforms and their loaders."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import pytorch_lightning as pl
import torch

from multimodal import distributed
from multimodal.data.decode import Limits
from multimodal.data.evaluation import EvaluationLoader
from multimodal.data.loader import ScheduledLoader
from multimodal.data.overfit import RepeatedBatch
from multimodal.data.remote import DEFAULT_FOLDER, ShardCache
from multimodal.data.source import Source, decoded_cache
from multimodal.data.transforms.base import Transform
from multimodal.data.workers import workers_of_machine
from multimodal.types import Batch


class MultimodalDataModule(pl.LightningDataModule):
    """Training batches by schedule, and validation batches of whole sources.

    Args:
        sources: to train on, by name.
        transforms: by modality.
        batch_size: samples per device and batch, for sources without their own.
        num_workers: processes that load, per device; 0 loads in the training process, None takes
            the machine's cores, shared by its devices, less one for each training process.
        seed: of the order and of every random choice about a sample.
        val_sources: to validate on, by name; None for no validation.
        eval_batch_size: samples per device and batch in validation.
        block_shards: shards that are shuffled together.
        drop_last: leaves out the samples of an epoch that do not fill a last batch, others each
            epoch; if False the batch is filled up.
        epoch_steps: with weights, the batches of an epoch; None for as many as draw every sample
            of all sources once.
        max_bad_fraction: of the samples that cannot be read; more stop the run.
        max_bad_run: samples in a row that cannot be read; more stop the run.
        verify_shards: holds the hash of every shard against the manifest when it is first opened;
            one whose content has changed is bad. Reads it once more, at about a gigabyte a second.
        remote_cache_folder: where shards that are behind URLs are put; shared by all processes of a
            node, also of other runs.
        remote_cache_gb: most gigabytes of them; at least the shards of two blocks.
        cache_mb: memory for decoded pictures, sounds and arrays, in each process that loads: worth
            it where most of a data set fits. 0 for none.
        limits: sizes that are decoded; None for those of ``Limits``.
        prefetch: batches that each worker keeps ready.
        cache_frozen: embeds the modalities of frozen towers once, before training, which then reads
            the embeddings (the root's ``cache_frozen`` has the options).
        worker_timeout_s: seconds after which a process that loads training batches, and brings
            none, is an error; None waits for ever.
        overfit: trains on the first batch again and again (``debug=overfit``).

    Raises:
        ValueError: if a source has a modality without a transform, or aligned modalities have
            different geometry.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        transforms: Mapping[str, Transform],
        batch_size: int,
        num_workers: int | None,
        seed: int,
        val_sources: Mapping[str, Source] | None = None,
        eval_batch_size: int = 256,
        block_shards: int = 16,
        drop_last: bool = True,
        epoch_steps: int | None = None,
        max_bad_fraction: float = 0.01,
        max_bad_run: int = 100,
        verify_shards: bool = True,
        remote_cache_folder: str = DEFAULT_FOLDER,
        remote_cache_gb: float = 100.0,
        cache_mb: int = 0,
        limits: Limits | None = None,
        prefetch: int = 2,
        cache_frozen: bool = False,
        overfit: bool = False,
        worker_timeout_s: float | None = 900.0,
    ) -> None:
        super().__init__()
        self.sources = dict(sources)
        self.val_sources = dict(val_sources or {})
        self.transforms = dict(transforms)
        self.batch_size = batch_size
        self.num_workers = workers_of_machine() if num_workers is None else num_workers
        self.prefetch = prefetch
        self.pin_memory = torch.cuda.is_available()
        self.seed = seed
        self.eval_batch_size = eval_batch_size
        self.block_shards = block_shards
        self.drop_last = drop_last
        self.epoch_steps = epoch_steps
        self.max_bad_fraction = max_bad_fraction
        self.max_bad_run = max_bad_run
        self.cache_frozen = cache_frozen
        self.overfit = overfit
        self.worker_timeout_s = worker_timeout_s
        cache = decoded_cache(cache_mb)
        for named in (self.sources, self.val_sources):
            for name, source in named.items():
                source.name = name
                source.limits = limits or Limits()
                source.verify = verify_shards
                source.cache = cache
                if source.remote is not None:
                    source.remote = ShardCache(remote_cache_folder, int(remote_cache_gb * 1e9))

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """A copy on ``device``, made while the step before is still computed (pinned memory)."""
        return batch.to(device, non_blocking=True)

    def train_dataloader(self) -> ScheduledLoader | RepeatedBatch:
        """This rank's slices of the scheduled batches; made anew, at the first batch."""
        loader = ScheduledLoader(
            self.sources,
            self.transforms,
            self.batch_size,
            self.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            num_workers=self.num_workers,
            block_shards=self.block_shards,
            drop_last=self.drop_last,
            epoch_steps=self.epoch_steps,
            max_bad_fraction=self.max_bad_fraction,
            max_bad_run=self.max_bad_run,
            pin_memory=self.pin_memory,
            prefetch=self.prefetch,
            worker_timeout_s=self.worker_timeout_s,
        )
        return RepeatedBatch(loader) if self.overfit else loader

    def teardown(self, stage: str) -> None:
        """Ends the processes that load: what comes after training may want their memory."""
        loader = self.trainer.train_dataloader if stage == "fit" and self.trainer else None
        if isinstance(loader, ScheduledLoader):
            loader.close()

    def val_dataloader(self) -> list[EvaluationLoader]:
        """One loader for each validation source; ranks share its batches."""
        return [
            EvaluationLoader(
                source,
                self.transforms,
                None,
                self.eval_batch_size,
                self.num_workers,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
                max_bad_fraction=self.max_bad_fraction,
                max_bad_run=self.max_bad_run,
                pin_memory=self.pin_memory,
            )
            for source in self.val_sources.values()
        ]


def evaluation_batches(
    source: Source,
    transforms: Mapping[str, Transform],
    modalities: Collection[str] | None,
    batch_size: int,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """A whole source in order, without random choices, with keys and metadata.

    Args:
        source: the samples.
        transforms: by modality.
        modalities: those wanted; None for all of the source.
        batch_size: samples in a batch; the last may be smaller.
        num_workers: processes that load; 0 loads in this one.
    """
    return iter(EvaluationLoader(source, transforms, modalities, batch_size, num_workers))
