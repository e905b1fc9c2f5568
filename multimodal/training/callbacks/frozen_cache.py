"""A cache of what is frozen; training then neither decodes nor encodes the samples.

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
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from multimodal.core.files import write_text
from multimodal.data.datamodule import MultimodalDataModule
from multimodal.data.loading.collate import Sample, load
from multimodal.data.loading.frozen_embeddings import FrozenEmbeddings
from multimodal.data.loading.workers import Steps, make_loader, one_thread
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.shards.paths import resolve
from multimodal.data.source import Source
from multimodal.data.transforms.base import Transform
from multimodal.models.heads import Standardize
from multimodal.models.towers import EmbeddingModel, Tower

log = logging.getLogger(__name__)

_BLOCK = 64  # samples that are read at once
_AT_ONCE = 32  # inputs that are embedded at once: what stays near a core, and bounds memory
_FORMAT = 1  # of the key; a new number invalidates all tables


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
    """

    def __init__(self, folder: str, views: int | None, transforms: Mapping[str, Any]) -> None:
        if views is not None and views < 1:
            raise ValueError(f"cache_frozen.views must be at least 1, or null, given {views}")
        self.folder = Path(folder)
        self.views = views
        self.transforms = transforms

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Computes what is missing; on all ranks.

        Raises:
            ValueError: if there is no frozen tower, or if something of its modality is random and
                there are no views.
        """
        data, model = trainer.datamodule, pl_module.model  # type: ignore[attr-defined]
        if stage != "fit":
            return
        assert isinstance(data, MultimodalDataModule)
        assert isinstance(model, EmbeddingModel)
        jobs = list(self._jobs(data, model))
        device = trainer.strategy.root_device
        tables: dict[Tower, list[FrozenEmbeddings]] = defaultdict(list)
        for source, modality in jobs:
            table = self._table(trainer, source, modality, data, model)
            _fill(table, source, modality, data, model, device, self.views, trainer)
            if table.bad:
                log.warning(
                    "%d of %d samples of %s could not be embedded: %s has no table entry",
                    table.bad,
                    len(table),
                    source.name,
                    modality,
                )
            source.frozen[modality] = FrozenEmbeddings(table.folder)
            tables[model.tower(modality)].append(table)
        for tower, own in tables.items():
            _standardize(tower, own)

    def _jobs(
        self, data: MultimodalDataModule, model: EmbeddingModel
    ) -> Iterator[tuple[Source, str]]:
        """Every source and modality that a frozen tower embeds."""
        any_frozen = False
        for name, source in data.sources.items():
            for modality in source.modalities:
                if modality not in model.towers or model.tower(modality).cached_width is None:
                    continue
                if model.joint.need_inputs(modality, model.tower(modality)):
                    continue
                any_frozen = True
                random = getattr(data.transforms[modality], "is_random", True)
                if self.views is None and (random or source.decoder.is_random(modality)):
                    what = (
                        f"its transform ({type(data.transforms[modality]).__name__}) augments it"
                        if random
                        else "one of several members or texts is drawn"
                    )
                    raise ValueError(
                        f"data.cache_frozen: {modality!r} of source {name!r} is random: {what}. "
                        "Set cache_frozen.views=K to keep K seeded views of each sample, or take "
                        "the random choices out"
                    )
                yield source, modality
        if not any_frozen:
            raise ValueError("data.cache_frozen=true, but no source has a frozen tower's modality")

    def _table(
        self,
        trainer: pl.Trainer,
        source: Source,
        modality: str,
        data: MultimodalDataModule,
        model: EmbeddingModel,
    ) -> FrozenEmbeddings:
        tower = model.tower(modality)
        parts = {
            "format": _FORMAT,
            "tower": weights_hash(tower.frozen_module),
            "transform": _with_files(self.transforms.get(modality)),
            "members": source.decoder.entry(modality),
            "limits": repr(source.decoder.limits),
            "shards": source.digest,
            "views": self.views,
            # the draws of the views are keyed by these two
            "seed": None if self.views is None else [data.seed, source.name],
        }
        text = json.dumps(parts, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        folder = self.folder / f"{source.name}-{modality}-{key}"
        if trainer.is_global_zero:
            assert tower.cached_width is not None
            FrozenEmbeddings.create(folder, len(source), self.views or 1, tower.cached_width)
            write_text(folder / "key.json", text + "\n")
        trainer.strategy.barrier("frozen cache made")
        if not (folder / "status.npy").exists():
            raise FileNotFoundError(
                f"{folder} is not there on rank {trainer.global_rank}: cache_frozen.folder must be "
                "a folder that all nodes see"
            )
        return FrozenEmbeddings(folder, writable=True)


def weights_hash(tower: nn.Module) -> str:
    """Equal for towers, or encoders, of the same structure with bit-identical weights."""
    digest = hashlib.sha256(repr(tower).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _with_files(config: Any) -> Any:
    """A configuration with the paths of files replaced by the hashes of their content."""
    if isinstance(config, Mapping):
        return {str(key): _with_files(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [_with_files(value) for value in config]
    if isinstance(config, str):
        try:
            file = resolve(config)
            if file.is_file():
                return [config, hashlib.sha256(file.read_bytes()).hexdigest()]
        except (ValueError, OSError):
            pass
    return config


@torch.no_grad()
def _fill(
    table: FrozenEmbeddings,
    source: Source,
    modality: str,
    data: MultimodalDataModule,
    model: EmbeddingModel,
    device: torch.device,
    views: int | None,
    trainer: pl.Trainer,
) -> None:
    """Computes this rank's share of what a table lacks, and waits for the others."""
    mine = np.arange(trainer.global_rank, len(source), trainer.world_size)
    todo = table.missing(mine)
    if len(todo):
        tower = model.tower(modality)
        before = next(tower.parameters()).device
        tower.to(device)
        steps = Steps(range(-(-len(todo) // _BLOCK)))
        blocks = _Views(source, data.transforms, modality, todo, views, data.seed)
        loader = make_loader(blocks, steps, data.loading, persistent=False)
        for number, (inputs, mask, good) in zip(steps, loader, strict=True):
            indices = todo[number * _BLOCK : (number + 1) * _BLOCK]
            embedded: Tensor | None = None
            if inputs is not None:
                flat = _embed(model, modality, inputs, mask, device)
                embedded = flat.view(-1, table.views, flat.shape[1])
            rows = iter(embedded if embedded is not None else ())
            for index, is_good in zip(indices.tolist(), good, strict=True):
                table.write(index, next(rows) if is_good else None)
            table.flush()
            if trainer.is_global_zero:
                done = min((number + 1) * _BLOCK, len(todo))
                if done == len(todo) or number % 50 == 0:
                    what = f"frozen {modality} of {source.name}"
                    print(f"{what}: {done}/{len(todo)} embedded", file=sys.stderr, flush=True)
        tower.to(before)
    trainer.strategy.barrier("frozen cache filled")
    left = len(table.missing(np.arange(len(source))))
    if left:
        raise RuntimeError(
            f"{left} samples of {table.folder} are not embedded after all ranks have done their "
            "share: cache_frozen.folder must be one that all nodes see"
        )


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


def _embed(
    model: EmbeddingModel, modality: str, inputs: Tensor, mask: Tensor | None, device: torch.device
) -> Tensor:
    """``[B, D or W]`` float32 on the CPU, a few inputs at a time."""
    masks = repeat(None) if mask is None else torch.split(mask.to(device), _AT_ONCE)
    parts = zip(torch.split(inputs.to(device), _AT_ONCE), masks)  # noqa: B905
    return torch.cat([model.frozen_part(modality, *part).float().cpu() for part in parts])


class _Views(Dataset[tuple["Tensor | None", "Tensor | None", list[bool]]]):
    """Number of a block -> inputs of its readable samples, all views of one sample in a row."""

    def __init__(
        self,
        source: Source,
        transforms: Mapping[str, Transform],
        modality: str,
        indices: np.ndarray[Any, np.dtype[np.int64]],
        views: int | None,
        seed: int,
    ) -> None:
        self.source = source
        self.transforms = transforms
        self.modality = modality
        self.indices = indices
        self.views = views
        self.seed = seed

    @one_thread()
    def __getitem__(self, number: int) -> tuple[Tensor | None, Tensor | None, list[bool]]:
        inputs: list[Tensor] = []
        good: list[bool] = []
        for index in self.indices[number * _BLOCK : (number + 1) * _BLOCK].tolist():
            views = self._views(index)
            good.append(views is not None)
            inputs += views or []
        if not inputs:
            return None, None, good
        return *self.transforms[self.modality].collate(inputs), good

    def _views(self, index: int) -> list[Tensor] | None:
        draws = (
            [None]
            if self.views is None
            else [
                SampleRNG.of_view(self.seed, self.source.name, index, v) for v in range(self.views)
            ]
        )
        views = []
        for rng in draws:
            sample = load(self.source, self.transforms, index, rng, [self.modality])
            if not isinstance(sample, Sample):
                return None
            views.append(sample.inputs[self.modality])
        return views
