"""Where an anchor's candidates come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol, runtime_checkable

from multimodal.core.bounds import AT_LEAST_1, SHARE, check_bounds


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

    @property
    def momentum(self) -> float | None:
        """Of the copy of the towers that fills the queue; None without one."""
        ...


@dataclass(frozen=True)
class AllRanks:
    """The batches of all ranks, with exact gradients to every rank's embeddings."""

    gathers: ClassVar[bool] = True
    size: ClassVar[int] = 0
    momentum: ClassVar[float | None] = None


@dataclass(frozen=True)
class Local:
    """This rank's own batch: nothing is sent for the loss, and there are fewer negatives."""

    gathers: ClassVar[bool] = False
    size: ClassVar[int] = 0
    momentum: ClassVar[float | None] = None


@dataclass(frozen=True)
class Queue:
    """The batches of all ranks, and a queue of past embeddings (MoCo, He et al. 2020).

    Args:
        size: embeddings kept per side of the pair, at least 1.
        momentum: in [0, 1): they are computed by an exponential moving average of the towers; None
            keeps what the towers themselves gave.
    """

    size: Annotated[int, AT_LEAST_1] = 4096
    momentum: Annotated[float, SHARE] | None = None

    gathers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_bounds(self)
