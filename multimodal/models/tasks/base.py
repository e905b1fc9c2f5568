"""The interface of tasks on a fusion: loss terms, predictions, and their scores.

Sizes in comments: B batch, N those of its samples that a task is about, W the fusion's width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.models.fusion.base import FusionOutput
from multimodal.models.tasks.scores import Scores


@dataclass(frozen=True, slots=True)
class TaskContext:
    """What a task may know of its model.

    Attributes:
        width: W of the fusion.
        encoders: modality -> its encoder, with an attribute ``width``.
        fused: the modalities that the fusion reads.
    """

    width: int
    encoders: Mapping[str, nn.Module]
    fused: Sequence[str]


Fuse = Callable[[Mapping[str, EncoderOutput], Mapping[str, Tensor]], FusionOutput]


@dataclass(slots=True)
class FusedBatch:
    """One batch after encoders and fusion, with everything that a task may need.

    Attributes:
        inputs: name -> ``[B, ...]``: of the modalities, and the targets.
        masks: name -> ``[B, T]`` bool, where inputs vary in length.
        presence: name -> ``[B]`` bool, where not every sample has it, after modality dropout.
        encoded: modality -> what its encoder made of it.
        fused: what the fusion made of them.
        fuse: the fusion, to try other combinations (matching).
        embeddings: modality -> ``[B, D]`` of norm 1, of towers with a head.
        sample_ids: ``[B]`` int64.
        positive_keys: ``[B]`` int64; samples with equal keys belong together.
        key: of the step's random choices (`hashing.stable_hash`).
    """

    inputs: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    presence: Mapping[str, Tensor]
    encoded: Mapping[str, EncoderOutput]
    fused: FusionOutput
    fuse: Fuse
    sample_ids: Tensor
    positive_keys: Tensor
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    key: int = 0

    def rows(self, *names: str) -> Tensor:
        """``[N]`` int64, the samples that have all of ``names``."""
        keep = torch.ones_like(self.sample_ids, dtype=torch.bool)
        for name in names:
            if name not in self.inputs:
                return keep.new_zeros(0, dtype=torch.int64)
            keep = keep & self.presence.get(name, keep)
        return keep.nonzero().flatten()


@dataclass(slots=True)
class LossTerm:
    """A sum of losses and its divisor; both are summed over ranks.

    Attributes:
        total: scalar, differentiable.
        count: scalar, of samples (of tokens, for captions).
        weight: of the mean in the experiment's loss.
    """

    total: Tensor
    count: Tensor
    weight: float = 1.0


class Task(nn.Module):
    """Base of the tasks.

    Args:
        weight: of the task's loss in the experiment's.

    Attributes:
        terms: names of all terms that ``loss`` may return; the same on every rank.
    """

    terms: tuple[str, ...]

    def __init__(self, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight={weight}: expected 0 or more")
        self.weight = weight

    @abstractmethod
    def loss(self, batch: FusedBatch) -> dict[str, LossTerm]:
        """The terms that this batch contributes to; empty if none."""

    @abstractmethod
    def observe(self, batch: FusedBatch) -> dict[str, Tensor]:
        """The inputs of the scores of this batch's samples, ``[N, ...]`` each; may be empty."""

    @abstractmethod
    def score(self, observed: Mapping[str, Tensor]) -> Scores:
        """The scores of all observations, batches joined."""


def joined(parts: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """A task's observations of several batches as one, on ``device``."""
    return {key: torch.cat([part[key] for part in parts]).to(device) for key in parts[0]}


def take(encoded: EncoderOutput, rows: Tensor) -> EncoderOutput:
    """The outputs of some samples, in the order of ``rows [N]``."""
    mask = None if encoded.mask is None else encoded.mask[rows]
    return EncoderOutput(encoded.features[rows], encoded.tokens[rows], mask)


def names_of(classes: Sequence[Any]) -> list[str]:
    """Class names as texts.

    Raises:
        ValueError: if there are fewer than two, or two are equal.
    """
    names = [str(name) for name in classes]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"classes={names}: expected two or more different names")
    return names
