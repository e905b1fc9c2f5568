"""What the cache of frozen towers holds: a source's samples, as one tower embeds one modality."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from multimodal.core.errors import UserError
from multimodal.core.names.modalities import teacher_of
from multimodal.data.datamodule import MultimodalDataModule
from multimodal.data.loading.collate import Sample, load
from multimodal.data.loading.workers import one_thread
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.shards.paths import resolve
from multimodal.data.source import Source
from multimodal.data.transforms.base import Transform
from multimodal.data.transforms.sound.whisper import WhisperTransform
from multimodal.data.transforms.text import TextTransform
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.training.teacher import Teacher

BLOCK = 64  # samples that are read at once
_AT_ONCE = 32  # inputs that are embedded at once: what stays near a core, and bounds memory
_FORMAT = 2  # of the key; a new number invalidates all tables


@dataclass(frozen=True)
class Job:
    """One table.

    Attributes:
        source: of the samples.
        modality: of the source.
        model: whose tower embeds it.
        transform: that feeds the tower.
        settings: the transform's configuration, for the key.
        taught: whether the model is a teacher, whose embeddings are kept; of a run's own towers it
            is what training does not change.
    """

    source: Source
    modality: str
    model: EmbeddingModel
    transform: Transform
    settings: Any
    taught: bool = False

    @property
    def name(self) -> str:
        """Of the embeddings in a batch."""
        return teacher_of(self.modality) if self.taught else self.modality

    @property
    def tower(self) -> Tower:
        """That embeds."""
        return self.model.tower(self.modality)

    @property
    def width(self) -> int:
        """Numbers of each row."""
        width = self.tower.embed_dim if self.taught else self.tower.cached_width
        assert width is not None
        return width

    @torch.no_grad()
    def embed(self, inputs: Tensor, mask: Tensor | None, device: torch.device) -> Tensor:
        """``[B, width]`` float32 on the CPU, a few inputs at a time."""
        if mask is not None and isinstance(self.transform, TextTransform):
            return self._embed_texts(inputs, mask, device)
        if mask is not None and isinstance(self.transform, WhisperTransform):
            return self._embed_sounds(inputs, mask, device)
        masks = repeat(None) if mask is None else torch.split(mask, _AT_ONCE)
        parts = zip(torch.split(inputs, _AT_ONCE), masks)  # noqa: B905
        return torch.cat([self._embedded(*part, device) for part in parts])

    def _embed_texts(self, ids: Tensor, mask: Tensor, device: torch.device) -> Tensor:
        """Equal texts once, and those of about one length together: most of a batch is padding."""
        counted = torch.cat([mask.sum(dim=1, keepdim=True), ids], dim=1)
        # sorted: the shortest first
        distinct, places = torch.unique(counted, dim=0, return_inverse=True)
        parts = []
        for texts in torch.split(distinct, _AT_ONCE):
            lengths, own = texts[:, :1], texts[:, 1:]
            if not self.transform.fill:  # type: ignore[attr-defined]
                own = own[:, : int(lengths.max())]
            parts.append(self._embedded(own, torch.arange(own.shape[1]) < lengths, device))
        return torch.cat(parts)[places]

    def _embed_sounds(self, sounds: Tensor, mask: Tensor, device: torch.device) -> Tensor:
        """Those of about one length together, as texts are."""
        lengths = mask.sum(dim=1)
        order = torch.argsort(lengths, stable=True)
        parts = []
        for rows in torch.split(order, _AT_ONCE):
            own, real = sounds[rows], mask[rows]
            longest = int(lengths[rows].max())
            parts.append(self._embedded(own[..., :longest], real[:, :longest], device))
        return torch.cat(parts)[torch.argsort(order)]

    def _embedded(self, inputs: Tensor, mask: Tensor | None, device: torch.device) -> Tensor:
        whole = self.model.embed if self.taught else self.model.frozen_part
        own = None if mask is None else mask.to(device)
        return whole(self.modality, inputs.to(device), own).float().cpu()

    def key(self, views: int | None, seed: int) -> dict[str, Any]:
        """Everything that determines the table's content."""
        module = self.tower if self.taught else self.tower.frozen_module
        return {
            "format": _FORMAT,
            "tower": weights_hash(module),
            "transform": _with_files(self.settings),
            "members": self.source.decoder.entry(self.modality),
            "limits": repr(self.source.decoder.limits),
            "shards": self.source.digest,
            "views": views,
            # the draws of the views are keyed by these two
            "seed": None if views is None else [seed, self.source.name],
        }

    def check_random(self, views: int | None) -> None:
        """Refuses random choices that no view keeps.

        Raises:
            ValueError: naming the random transforms.
        """
        augments = getattr(self.transform, "is_random", True)
        if views is not None or not (augments or self.source.decoder.is_random(self.modality)):
            return
        what = (
            f"its transform ({type(self.transform).__name__}) augments it"
            if augments
            else "one of several members or texts is drawn"
        )
        raise ValueError(
            f"data.cache_frozen: {self.modality!r} of source {self.source.name!r} is random: "
            f"{what}. Set cache_frozen.views=K to keep K seeded views of each sample, or take "
            "the random choices out"
        )


def jobs(
    data: MultimodalDataModule,
    model: EmbeddingModel,
    settings: Mapping[str, Any],
    teacher: Teacher | None,
) -> Iterator[Job]:
    """Every source and modality that a frozen tower embeds, or a teacher's.

    Raises:
        ValueError: if there is none.
    """
    has_any = False
    for source in data.sources.values():
        for name in source.modalities:
            if _is_cached(name, model):
                has_any = True
                yield Job(source, name, model, data.transforms[name], settings.get(name))
            if teacher is not None and name in teacher.modalities:
                has_any = True
                how = teacher.transforms[name], teacher.settings[name]
                yield Job(source, name, teacher.model, *how, taught=True)
    if not has_any:
        raise ValueError("data.cache_frozen=true, but no source has a frozen tower's modality")


def _is_cached(modality: str, model: EmbeddingModel) -> bool:
    if modality not in model.towers or model.tower(modality).cached_width is None:
        return False
    return not model.joint.need_inputs(modality, model.tower(modality))


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


class Views(Dataset[tuple["Tensor | None", "Tensor | None", list[bool]]]):
    """Number of a block -> inputs of its readable samples, all views of one sample in a row.

    Args:
        job: the tower and the source.
        indices: of the samples, ``BLOCK`` of them a block.
        views: see `FrozenCache`.
        seed: of the data.
    """

    def __init__(self, job: Job, indices: NDArray[np.int64], views: int | None, seed: int) -> None:
        # not the job: its tower stays out of the processes that load
        self.source, self.modality = job.source, job.modality
        self.transforms = {job.modality: job.transform}
        self.indices = indices
        self.views = views
        self.seed = seed

    @one_thread()
    def __getitem__(self, number: int) -> tuple[Tensor | None, Tensor | None, list[bool]]:
        inputs: list[Tensor] = []
        good: list[bool] = []
        for index in self.indices[number * BLOCK : (number + 1) * BLOCK].tolist():
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


class Embedded(Dataset[tuple["Tensor | UserError | None", list[bool]]]):
    """Number of a block -> what `Views` gives, embedded ``[N, width]`` by the process that reads.

    So on a CPU as many towers compute as there are cores, with one thread each.

    Args:
        samples: the blocks.
        job: the tower.
    """

    def __init__(self, samples: Views, job: Job) -> None:
        self.samples = samples
        self.job = job

    @one_thread()
    def __getitem__(self, number: int) -> tuple[Tensor | UserError | None, list[bool]]:
        inputs, mask, good = self.samples[number]
        if inputs is None:
            return None, good
        try:
            return self.job.embed(inputs, mask, torch.device("cpu")), good
        except UserError as error:  # to be raised as it is, not as what a process has ended with
            return error, good
