"""Where an anchor's candidates come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable


@runtime_checkable
class Candidates(Protocol):
    """What a pair needs to know; the classes below only say so."""

    @property
    def gathers(self) -> bool:
        """Whether the other ranks' batches are candidates."""
        ...

    @property
    def size(self) -> int:
        """Past embeddings kept per side, beside the batch; 0 for no queue."""
        ...


@dataclass(frozen=True)
class AllRanks:
    """The batches of all ranks, with exact gradients to every rank's embeddings."""

    gathers: ClassVar[bool] = True
    size: ClassVar[int] = 0


@dataclass(frozen=True)
class Local:
    """This rank's own batch: nothing is sent for the loss, and there are fewer negatives."""

    gathers: ClassVar[bool] = False
    size: ClassVar[int] = 0
