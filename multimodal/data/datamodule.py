"""The data of a run for Lightning: sources, transforms and their loaders."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
import torch

from multimodal.core import distributed
from multimodal.core.batch import Batch
from multimodal.core.settings import flattened
from multimodal.data.loading.evaluation_loader import EvaluationLoader
from multimodal.data.loading.loader import RepeatedBatch, ScheduledLoader
from multimodal.data.loading.workers import crosses_as_bytes
from multimodal.data.settings import EvaluationData, LoaderSettings, OrderSettings, ReadSettings
from multimodal.data.source import Source, SourceContext
from multimodal.data.transforms.base import Transform
from multimodal.data.transforms.finishing import finished


class MultimodalDataModule(pl.LightningDataModule):
    """Scheduled training batches, and validation batches of whole sources.

    Args:
        sources: to train on, by name.
        transforms: by modality.
        batch_size: samples per device and batch, for sources without their own.
        seed: of the order and of every random choice about a sample.
        val_sources: to validate on, by name; None for no validation.
        eval_batch_size: samples per device and batch in validation.
        cache_frozen: embeds the modalities of frozen towers once, before training, which then reads
            the embeddings (the root's ``cache_frozen`` has the options).
        overfit: trains on the first batch only (``debug=overfit``).
        loading: workers, and how many bad samples are borne.
        order: of the samples of an epoch.
        reading: hashes, caches and limits.

    The fields of the last three are keywords of the constructor (`flattened`).

    Raises:
        ValueError: if a source has a modality without a transform, or aligned modalities have
            different geometry.
    """

    @flattened(loading=LoaderSettings, order=OrderSettings, reading=ReadSettings)
    def __init__(
        self,
        sources: Mapping[str, Source],
        transforms: Mapping[str, Transform],
        batch_size: int,
        seed: int,
        val_sources: Mapping[str, Source] | None = None,
        eval_batch_size: int = 256,
        cache_frozen: bool = False,
        overfit: bool = False,
        *,
        loading: LoaderSettings,
        order: OrderSettings,
        reading: ReadSettings,
    ) -> None:
        super().__init__()
        context = SourceContext.of(reading)
        self.sources = {name: each.within(context, name) for name, each in sources.items()}
        self.val_sources = {
            name: each.within(context, name) for name, each in (val_sources or {}).items()
        }
        self.transforms = dict(transforms)
        self.batch_size = batch_size
        self.seed = seed
        self.loading = loading
        self.order = order
        self.eval_batch_size = eval_batch_size
        self.cache_frozen = cache_frozen
        self.overfit = overfit

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """A copy on ``device``, made while the step before is still computed (pinned memory)."""
        return finished(batch.to(device, non_blocking=True), self.transforms)

    def train_dataloader(self) -> ScheduledLoader | RepeatedBatch:
        """This rank's slices of the scheduled batches; a new loader, at the first batch."""
        loader = self._loader(distributed.rank(), distributed.world_size())
        return RepeatedBatch(loader) if self.overfit else loader

    def check_batches(self, world_size: int) -> None:
        """Refuses, before any rank is started, batches that the sources cannot fill.

        Args:
            world_size: of the run.

        Raises:
            ValueError: saying what to set.
        """
        self._loader(0, world_size)
        self.val_dataloader()

    def _loader(self, rank: int, world_size: int) -> ScheduledLoader:
        return ScheduledLoader(
            self.sources,
            self.transforms,
            self.batch_size,
            self.seed,
            rank,
            world_size,
            self.loading,
            self.order,
        )

    def teardown(self, stage: str) -> None:
        """Shuts the workers down: what follows training may need their memory."""
        loader = self.trainer.train_dataloader if stage == "fit" and self.trainer else None
        if isinstance(loader, ScheduledLoader):
            loader.close()

    def val_dataloader(self) -> list[EvaluationLoader]:
        """One loader for each validation source; ranks share its batches."""
        data = EvaluationData(self.transforms, self.eval_batch_size, self.loading)
        rank, world_size = distributed.rank(), distributed.world_size()
        as_bytes = crosses_as_bytes(self.loading)
        return [
            EvaluationLoader(source, data, rank=rank, world_size=world_size, as_bytes=as_bytes)
            for source in self.val_sources.values()
        ]
