"""Where an anchor's candidates come from, and the queue that keeps past ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from multimodal.core.bounds import AT_LEAST_1, SHARE, check_bounds
from multimodal.core.distributed import world_size
from multimodal.objectives.matches import SampleKeys

Scope = Literal["batch", "anchor"]


@runtime_checkable
class Candidates(Protocol):
    """What a pair needs to know of its candidates."""

    @property
    def gathers(self) -> bool:
        """Whether the other ranks' batches are candidates."""
        ...

    @property
    def size(self) -> int:
        """Past embeddings kept per side, beside the batch; 0 for no queue."""
        ...

    @property
    def momentum(self) -> float | None:
        """Of the copy of the towers that fills the queue; None without one."""
        ...


def passes(candidates: Candidates) -> bool:
    """Whether embeddings go round the ranks, and are not gathered."""
    return bool(getattr(candidates, "passes", False)) and world_size() > 1


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """Base of the three: who is compared with the negatives that samples list.

    Args:
        listed: ``batch``: every anchor of the batch, as DPR does (Karpukhin et al. 2020,
            arXiv:2004.04906, Section 3.2); ``anchor``: only the one that lists them.

    Raises:
        ValueError: if ``listed`` is neither.
    """

    listed: Scope = "batch"

    def __post_init__(self) -> None:
        if self.listed not in ("batch", "anchor"):
            raise ValueError(
                f"candidates.listed must be 'batch' (all anchors are compared with the listed "
                f"negatives) or 'anchor' (only the one that lists them), given {self.listed!r}"
            )
        check_bounds(self)


@dataclass(frozen=True)
class AllRanks(_Listed):
    """The batches of all ranks, with exact gradients to every rank's embeddings."""

    gathers: ClassVar[bool] = True
    size: ClassVar[int] = 0
    momentum: ClassVar[float | None] = None


@dataclass(frozen=True)
class Ring(AllRanks):
    """The batches of all ranks, which go round instead of being gathered; for SigLIP, in batch.

    The loss is that of ``AllRanks``. Samples with very many positives, or with listed negatives,
    are gathered. The statistics of similarities are those of each rank's own batch.
    """

    passes: ClassVar[bool] = True


@dataclass(frozen=True)
class Local(_Listed):
    """This rank's own batch: no communication for the loss, but fewer negatives."""

    gathers: ClassVar[bool] = False
    size: ClassVar[int] = 0
    momentum: ClassVar[float | None] = None


@dataclass(frozen=True)
class Queue(_Listed):
    """The batches of all ranks, and a queue of past embeddings (MoCo, He et al. 2020).

    Args:
        size: embeddings kept per side of the pair, at least 1.
        momentum: in [0, 1): they are computed by an exponential moving average of the towers; None
            keeps what the towers themselves gave.
    """

    size: Annotated[int, AT_LEAST_1] = 4096
    momentum: Annotated[float, SHARE] | None = None

    gathers: ClassVar[bool] = True


class EmbeddingQueue(nn.Module):
    """The last ``size`` embeddings of one modality, oldest overwritten first.

    All state is in buffers, so a checkpoint restores it. Every rank enqueues the same gathered
    rows, so the ranks agree and nothing has to be broadcast. Without host synchronisation.

    Args:
        size: rows kept.
        embed_dim: D.
    """

    embeddings: Tensor
    sample_ids: Tensor
    positive_keys: Tensor
    filled: Tensor
    position: Tensor

    def __init__(self, size: int, embed_dim: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(size, embed_dim))
        self.register_buffer("sample_ids", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("positive_keys", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def content(self) -> tuple[Tensor, SampleKeys]:
        """All slots, ``[size, D]``, with ids and keys; empty slots are marked."""
        return self.embeddings, SampleKeys(self.sample_ids, self.positive_keys, self.filled)

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, batch: SampleKeys) -> None:
        """Appends rows ``[N, D]``, the last ``size`` of them where there are more."""
        size = len(self.filled)
        embeddings, batch = embeddings[-size:], batch[slice(-size, None)]
        slots = (self.position + torch.arange(len(batch), device=self.position.device)) % size
        self.embeddings[slots] = embeddings.to(self.embeddings.dtype)
        self.sample_ids[slots] = batch.sample_ids
        self.positive_keys[slots] = batch.positive_keys
        self.filled[slots] = True
        self.position.copy_((self.position + len(batch)) % size)
