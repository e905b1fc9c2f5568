"""A cache of frozen towers' features; training then neither decodes nor encodes the samples.

Of a frozen tower it holds the embeddings, of a tower whose encoder alone is frozen the features,
which go through the head, or the connector and its backbone, at every step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from multimodal.core.errors import UserError
from multimodal.core.files import write_text
from multimodal.data.datamodule import MultimodalDataModule
from multimodal.data.loading.frozen_embeddings import FrozenEmbeddings
from multimodal.data.loading.workers import Steps, make_loader, on_all_cores
from multimodal.data.settings import LoaderSettings
from multimodal.models.heads import Standardize
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.training.frozen_jobs import BLOCK, Embedded, Job, Views, jobs
from multimodal.training.teacher import Teacher

log = logging.getLogger(__name__)


class FrozenCache(pl.Callback):
    """Fills the tables of the frozen towers' embeddings before training, and lets it read them.

    A table is identified by a hash of everything that determines its content: the tower's weights
    and structure, the transform, the modality's members, the shards, the views and their seed.
    Ranks share the work; incomplete tables are resumed.

    Args:
        folder: of all tables, seen by all ranks.
        views: how many seeded views of each sample are kept, of which training draws one. A
            modality that is aligned with a kept one then has that view's geometry. None: no random
            choices at all.
        transforms: the transforms' configuration, for the key.
        teacher: whose embeddings of the same samples are kept as well.
        views_of: modality -> other numbers than ``views``.
    """

    def __init__(
        self,
        folder: str,
        views: int | None,
        transforms: Mapping[str, Any],
        teacher: Teacher | None = None,
        views_of: Mapping[str, int] | None = None,
    ) -> None:
        if views is not None and views < 1:
            raise ValueError(f"cache_frozen.views must be at least 1, or null, given {views}")
        self.folder = Path(folder)
        self.views = views
        self.views_of = dict(views_of or {})
        self.transforms = transforms
        self.teacher = teacher

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Computes missing features; on all ranks.

        Raises:
            ValueError: if there is no frozen tower, if something of its modality is random and
                there are no views, or if modalities that are read in the same view have different
                numbers of them.
        """
        data, model = trainer.datamodule, pl_module.model  # type: ignore[attr-defined]
        if stage != "fit":
            return
        assert isinstance(data, MultimodalDataModule)
        assert isinstance(model, EmbeddingModel)
        embedding_jobs = list(jobs(data, model, self.transforms, self.teacher))
        self.check_views(embedding_jobs)
        device = trainer.strategy.root_device
        tables: dict[Tower, list[FrozenEmbeddings]] = defaultdict(list)
        for job in embedding_jobs:
            job.check_random(self._views(job))
            table = self._table(trainer, job, data.seed)
            _fill(table, job, data, device, self._views(job), trainer)
            if table.bad:
                log.warning(
                    "%d of %d samples of %s could not be embedded: %s has no table entry",
                    table.bad,
                    len(table),
                    job.source.name,
                    job.name,
                )
            job.source.frozen[job.name] = FrozenEmbeddings(table.folder)
            if not job.taught:
                tables[job.tower].append(table)
        self.teacher = None  # its memory is free again
        for tower, own in tables.items():
            _standardize(tower, own)

    def _views(self, job: Job) -> int | None:
        return self.views_of.get(job.modality, self.views)

    def check_views(self, embedding_jobs: list[Job]) -> None:
        """Refuses different numbers of views where a sample's are read together.

        Raises:
            ValueError: naming them.
        """
        read: dict[str, dict[str, int | None]] = defaultdict(dict)
        taught = any(job.taught for job in embedding_jobs)
        for job in embedding_jobs:
            if taught or job.modality not in job.source.decoder.alone:
                read[job.source.name][job.modality] = self._views(job)
        for source, views in read.items():
            if len(set(views.values())) > 1:
                numbers = ", ".join(f"{name}: {count}" for name, count in views.items())
                raise ValueError(
                    f"cache_frozen.views_of: source {source!r} reads these in the same view, and "
                    f"they have different numbers of views ({numbers}): give them the same"
                )

    def _table(self, trainer: pl.Trainer, job: Job, seed: int) -> FrozenEmbeddings:
        views = self._views(job)
        text = json.dumps(job.key(views, seed), sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        folder = self.folder / f"{job.source.name}-{job.modality}-{key}"
        if trainer.is_global_zero:
            FrozenEmbeddings.create(folder, len(job.source), views or 1, job.width)
            write_text(folder / "key.json", text + "\n")
        trainer.strategy.barrier("frozen cache made")
        if not (folder / "status.npy").exists():
            raise FileNotFoundError(
                f"{folder} is not there on rank {trainer.global_rank}: cache_frozen.folder must be "
                "a folder that all nodes see"
            )
        return FrozenEmbeddings(folder, writable=True)


@torch.no_grad()
def _fill(
    table: FrozenEmbeddings,
    job: Job,
    data: MultimodalDataModule,
    device: torch.device,
    views: int | None,
    trainer: pl.Trainer,
) -> None:
    """Computes this rank's share of what a table lacks, and waits for the others."""
    mine = np.arange(trainer.global_rank, len(table), trainer.world_size)
    todo = table.missing(mine)
    if len(todo):
        tower = job.tower
        before = next(tower.parameters()).device
        tower.to(device)
        steps = Steps(range(-(-len(todo) // BLOCK)))
        blocks = embedded_blocks(
            job, Views(job, todo, views, data.seed), steps, data.loading, device
        )
        for number, (flat, good) in zip(steps, blocks, strict=True):
            indices = todo[number * BLOCK : (number + 1) * BLOCK]
            rows = iter(() if flat is None else flat.view(-1, table.views, flat.shape[1]))
            for index, is_good in zip(indices.tolist(), good, strict=True):
                table.write(index, next(rows) if is_good else None)
            table.flush()
            if trainer.is_global_zero:
                done = min((number + 1) * BLOCK, len(todo))
                if done == len(todo) or number % 50 == 0:
                    what = f"frozen {job.name} of {job.source.name}"
                    print(f"{what}: {done}/{len(todo)} embedded", file=sys.stderr, flush=True)
        tower.to(before)
    trainer.strategy.barrier("frozen cache filled")
    left = len(table.missing(np.arange(len(table))))
    if left:
        raise RuntimeError(
            f"{left} samples of {table.folder} are not embedded after all ranks have done their "
            "share: cache_frozen.folder must be one that all nodes see"
        )


def embedded_blocks(
    job: Job, samples: Views, steps: Steps, settings: LoaderSettings, device: torch.device
) -> Iterator[tuple[Tensor | None, list[bool]]]:
    """The embeddings of each block's readable samples ``[N, width]``, and which those are."""
    if device.type == "cpu":
        for rows, good in make_loader(Embedded(samples, job), steps, on_all_cores(settings), False):
            if isinstance(rows, UserError):
                raise rows
            yield rows, good
        return
    for inputs, mask, good in make_loader(samples, steps, settings, persistent=False):
        yield None if inputs is None else job.embed(inputs, mask, device), good


def _standardize(tower: nn.Module, tables: list[FrozenEmbeddings]) -> None:
    """Gives a head that standardises the moments of all that its encoder was asked to embed."""
    layers = [part for part in tower.modules() if isinstance(part, Standardize)]
    if not layers:
        return
    sums = [table.sums() for table in tables]
    count = sum(each[0] for each in sums)
    if not count:
        raise RuntimeError("no sample could be embedded: there are no features to standardise by")
    mean = sum(each[1] for each in sums) / count
    variance = sum(each[2] for each in sums) / count - mean**2
    for layer in layers:
        layer.fit(torch.from_numpy(mean), torch.from_numpy(np.sqrt(np.maximum(variance, 0.0))))
