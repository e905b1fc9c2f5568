"""The shared types: an encoder's output and a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class EncoderOutput:
    """What every encoder returns, before projection and normalisation.

    Attributes:
        features: ``[B, W]``, one pooled vector per sample, of the encoder's ``width`` W.
        tokens: ``[B, T, W]``, the sequence it was pooled from (cross-attention reads it).
        mask: ``[B, T]`` bool, True where a token is real; None when every token is.
    """

    features: Tensor
    tokens: Tensor
    mask: Tensor | None = None


def scatter_present(rows: Tensor, present: Tensor) -> Tensor:
    """``rows``, those of the samples that have a modality, at their places; zeros at the others."""
    places = present.nonzero().flatten()
    return rows.new_zeros(len(present), *rows.shape[1:]).index_copy(0, places, rows)


@dataclass(slots=True)
class ListedInputs:
    """Negatives that the samples of a batch list, of one modality, as its encoder takes them.

    Attributes:
        inputs: ``[R, ...]``, R in all; None where no sample of this rank's batch lists any.
        mask: bool ``[R, T]`` (True = real) for inputs of varying length.
        owners: ``[R]`` int64, sample ids of the anchors that list them.
        sample_ids: ``[R]`` int64, of listed negatives: another sample's own, or a hash of its owner
            and its place in the list.
        positive_keys: ``[R]`` int64, likewise.
    """

    inputs: Tensor | None
    mask: Tensor | None
    owners: Tensor
    sample_ids: Tensor
    positive_keys: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> ListedInputs:
        """The same with every tensor changed."""
        return ListedInputs(
            None if self.inputs is None else change(self.inputs),
            None if self.mask is None else change(self.mask),
            change(self.owners),
            change(self.sample_ids),
            change(self.positive_keys),
        )


@dataclass(slots=True)
class Batch:
    """One rank's slice of a global batch; every sample is of the same source.

    Attributes:
        inputs: modality name -> tensor ``[B, ...]``, ready for that modality's encoder.
        masks: modality name -> bool ``[B, T]`` (True = real) for inputs of varying length;
            a modality that has no padding is absent here.
        presence: modality name -> bool ``[B]``, False where a sample lacks it (its input is zeros
            then); a modality that every sample has is absent here.
        sample_ids: ``[B]`` int64, equal only for the same sample of the same source.
        positive_keys: ``[B]`` int64; samples with equal keys are positives of each other
            (the same concept, caption or class), never negatives.
        repeats: ``[B]`` int64, which repetition of the sample within its epoch this is; in
            evaluation, which of its captions.
        source: name of the source that all samples come from.
        step: position in the ``BatchSchedule`` (counts batches, not optimizer steps).
        keys: the samples' keys in their shards, for logs, reports and error messages.
        metadata: per-sample JSON metadata; filled for evaluation, empty in training.
        embeddings: modality -> ``[B, D]`` of a frozen tower, unit-norm, or the features ``[B, W]``
            of a frozen encoder, from the cache of ``data.cache_frozen``; such a modality is absent
            in ``inputs``. ``teacher_`` before a modality: its embeddings by a teacher.
        listed: modality -> negatives that the samples list; every rank has the same modalities.
    """

    inputs: dict[str, Tensor]
    masks: dict[str, Tensor]
    sample_ids: Tensor
    positive_keys: Tensor
    repeats: Tensor
    source: str
    step: int = 0
    keys: list[str] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    presence: dict[str, Tensor] = field(default_factory=dict)
    listed: dict[str, ListedInputs] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.sample_ids.shape[0])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            inputs={name: change(value) for name, value in self.inputs.items()},
            masks={name: change(value) for name, value in self.masks.items()},
            presence={name: change(value) for name, value in self.presence.items()},
            embeddings={name: change(value) for name, value in self.embeddings.items()},
            sample_ids=change(self.sample_ids),
            positive_keys=change(self.positive_keys),
            repeats=change(self.repeats),
            listed={name: rows.map(change) for name, rows in self.listed.items()},
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by ``DataLoader``)."""
        return self._map(lambda tensor: tensor.pin_memory())
