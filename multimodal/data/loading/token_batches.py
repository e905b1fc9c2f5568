"""Batches that are filled up to a number of tokens: where a pass over the samples is cut.

A pass over a source's samples is cut into N batches of about equal tokens, at the same shares of
all of its tokens in every pass. So N is known without the order, and a batch is a function of its
number alone, as batches of equal size are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


class Blocks(Protocol):
    """A pass over the samples of a source, block by block."""

    @property
    def shards(self) -> Sequence[Indices]:
        """The shards of each block."""
        ...

    def block(self, number: int) -> Indices:
        """The samples of a block, in their order."""
        ...


@dataclass(frozen=True)
class TokenBudget:
    """The tokens of a source's samples, and how many a global batch may have.

    Attributes:
        tokens: ``[N]`` int64, at least 1 each.
        most: in a global batch.
        starts: index of each shard's first sample, and the number of samples.

    Raises:
        ValueError: if a batch could not even hold two of the longest.
    """

    tokens: Indices
    most: int
    starts: Indices

    def __post_init__(self) -> None:
        if self.most < 2 * self.longest:
            raise ValueError(
                f"data.max_tokens leaves {self.most} tokens for a batch of all devices, and a "
                f"sample has up to {self.longest}: raise it to {2 * self.longest} at least"
            )

    @cached_property
    def longest(self) -> int:
        """Most tokens of a sample."""
        return int(self.tokens.max())

    @cached_property
    def total(self) -> int:
        """Tokens of all samples."""
        return int(self.tokens.sum())

    @cached_property
    def batches(self) -> int:
        """Of a pass: as few as never hold more than ``most``."""
        # The last sample of a batch begins within its share and may end one length behind it.
        return -(-self.total // (self.most - self.longest))

    @cached_property
    def fewest(self) -> int:
        """Samples that every batch has at least."""
        return self.total // self.batches // self.longest

    @cached_property
    def digest(self) -> str:
        """Equal for equal tokens."""
        return hashlib.blake2b(self.tokens.tobytes(), digest_size=8).hexdigest()

    @cached_property
    def _of_shards(self) -> Indices:
        return np.add.reduceat(self.tokens, self.starts[:-1])

    def batch(self, order: Blocks, number: int) -> Indices:
        """The samples that begin within one of ``batches`` equal shares of the pass's tokens."""
        low = -(-number * self.total // self.batches)
        high = -(-(number + 1) * self.total // self.batches)
        sums = np.array([self._of_shards[shards].sum() for shards in order.shards])
        ends = np.cumsum(sums)
        indices = []
        for block in range(int(np.searchsorted(ends, low, side="right")), len(ends)):
            begin = int(ends[block] - sums[block])
            if begin >= high:
                break
            samples = order.block(block)
            lengths = self.tokens[samples]
            begins = begin + np.cumsum(lengths) - lengths
            indices.append(samples[(begins >= low) & (begins < high)])
        return np.concatenate(indices)


def share(tokens: Indices, rank: int, world_size: int) -> Indices:
    """Places of a global batch that one rank takes: about equal numbers and tokens on each.

    Args:
        tokens: ``[B]``, of the samples.
        rank: which share.
        world_size: number of shares.
    """
    by_length = np.argsort(-tokens, kind="stable")
    turn, place = np.divmod(np.arange(len(tokens)), world_size)
    owners = np.where(turn % 2, world_size - 1 - place, place)  # there and back again
    return np.sort(by_length[owners == rank])
