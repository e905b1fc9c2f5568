"""The samples of each batch: a pure function of the seed, the sources and the step.

There is no iterator state: the position of a run is one number, and resuming asks for the next
step. Ranks and workers play no role: the schedule is one of global batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from multimodal.core.hashing import generator
from multimodal.data.loading.token_batches import TokenBudget, share
from multimodal.data.lru import LRU

_WINDOW = 4096  # steps whose order is computed together

Indices: TypeAlias = "NDArray[np.int64]"


@dataclass(frozen=True)
class SourceSize:
    """What the schedule has to know of a source.

    Attributes:
        shard_samples: samples in each of its shards, in the order of their indices.
        batch_size: samples in a global batch of this source.
        repeat: how many times an epoch draws each sample (1.25: all once, a quarter twice).
        weight: the source's share of an epoch's batches, relative to the other weights; the
            alternative to ``repeat``.
        starts: index of each shard's first sample; None to sum them up.
        budget: of the tokens of a global batch, which then has as many samples as they allow;
            None for ``batch_size``.
    """

    shard_samples: Indices
    batch_size: int
    repeat: float = 1.0
    weight: float | None = None
    starts: Indices | None = None
    budget: TokenBudget | None = None

    @cached_property
    def mean_batch(self) -> float:
        """Samples of a global batch, on average."""
        return self.batch_size if self.budget is None else self.num_samples / self.budget.batches

    @cached_property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return int(self.shard_samples.sum())

    def spans(self, shards: Indices) -> list[tuple[int, int]]:
        """Index of the first sample of each of these shards, and of the one after its last."""
        starts = self._starts if self.starts is None else self.starts
        first = starts[shards].tolist()
        counts = self.shard_samples[shards].tolist()
        return [(start, start + count) for start, count in zip(first, counts, strict=True)]

    @cached_property
    def _starts(self) -> Indices:
        return np.cumsum(self.shard_samples) - self.shard_samples


@dataclass(frozen=True)
class BatchSpec:
    """One global batch of B samples, all of one source.

    Attributes:
        step: the position it was asked for with, counted from 0 over all epochs.
        epoch: the epoch of the step.
        source: name of the source.
        indices: ``[B]`` int64, samples of the source.
        repeats: ``[B]`` int64, for each the number of its earlier uses in this epoch; an index and
            its repeat occur together once in an epoch.
        tokens: ``[B]`` int64, of each, where they are counted.
    """

    step: int
    epoch: int
    source: str
    indices: Indices
    repeats: Indices
    tokens: Indices | None = None

    def share(self, rank: int, world_size: int) -> BatchSpec:
        """The part of one rank: an equal slice, or where tokens are counted about as many."""
        if self.tokens is None:
            size = len(self.indices) // world_size
            places = np.arange(rank * size, (rank + 1) * size)
        else:
            places = share(self.tokens, rank, world_size)
        own = None if self.tokens is None else self.tokens[places]
        return replace(self, indices=self.indices[places], repeats=self.repeats[places], tokens=own)


class BatchSchedule:
    """``schedule(step)`` is the global batch at ``step``.

    An epoch of a source has a whole number of batches, N of B samples, so that it draws each of
    its n samples floor(N B / n) or ceil(N B / n) times; those that it draws once more are others
    in the next epoch, until there are too few left that have not had their turn. N follows from
    ``repeat`` (repeat x n / B, rounded down, or up if not ``drop_last``) or from ``weight``.
    Batches of several sources are spread evenly over the epoch, in an order that changes with it.

    Shards are permuted, then the samples within each block of ``block_shards`` of them, so that
    only so many shards are in use at a time.

    A source with a budget of tokens has batches of about equal tokens instead, and as many in
    every pass: see ``TokenBudget``. ``drop_last`` does not concern it.

    Args:
        seed: with equal seeds and sources, schedules are equal.
        sources: the sources by name. Either none has a weight, or all have one and no ``repeat``.
        block_shards: shards that are read, and shuffled, together.
        drop_last: leaves out the samples that do not fill a last batch (others each epoch); if
            False the batch is filled up with samples that the epoch draws once more.
        epoch_steps: with weights, the batches of an epoch. None: as many as draw every sample of
            all sources once.

    Attributes:
        steps_per_epoch: the same for every epoch.
        batches: for each source, its batches in an epoch.

    Raises:
        ValueError: if weights and repeats are mixed, when a source has fewer samples than a batch,
            or when its weight is too small for even one batch.
    """

    def __init__(
        self,
        seed: int,
        sources: Mapping[str, SourceSize],
        block_shards: int = 16,
        drop_last: bool = True,
        epoch_steps: int | None = None,
    ) -> None:
        _check(sources, block_shards)
        self.seed = seed
        self.sources = dict(sorted(sources.items()))
        self.block_shards = block_shards
        self.batches = _count_batches(self.sources, drop_last, epoch_steps)
        self.steps_per_epoch = sum(self.batches.values())
        # Recomputed when missing: some of an epoch's order, and the shuffles in use of each source.
        self._orders: LRU[tuple[int, int], tuple[Indices, Indices]] = LRU(4)
        self._passes: LRU[tuple[str, str, int, int], _Pass] = LRU(2 * len(sources))

    def __call__(self, step: int) -> BatchSpec:
        """The batch at ``step``.

        Raises:
            ValueError: if ``step`` is negative.
        """
        if step < 0:
            raise ValueError(f"steps begin at 0, got {step}")
        epoch, place = divmod(step, self.steps_per_epoch)
        window, at = divmod(place, _WINDOW)
        order, ordinals = self._orders.get((epoch, window), self._interleave)
        source = list(self.sources)[order[at]]
        if (budget := self.sources[source].budget) is not None:
            indices, repeat = self._by_tokens(source, budget, epoch, int(ordinals[at]))
            repeats = np.full(len(indices), repeat, np.int64)
            return BatchSpec(step, epoch, source, indices, repeats, budget.tokens[indices])
        size = self.sources[source].batch_size
        first = int(ordinals[at]) * size
        indices, repeats = self._draws(source, epoch, first, first + size)
        return BatchSpec(step, epoch, source, indices, repeats)

    def _interleave(self, key: tuple[int, int]) -> tuple[Indices, Indices]:
        """For some steps of an epoch, the number of each one's source and of its batch there."""
        epoch, window = key
        offsets = generator(self.seed, epoch, "order").permutation(len(self.batches))
        counts = np.array(list(self.batches.values()), np.int64)
        # Batch i of N is at (i + offset) / N of the epoch: as even as possible.
        shifts = (offsets + 0.5) / len(counts)
        # So the step of rank r is at r / steps, plus or minus one batch of each source.
        first = window * _WINDOW
        last = min(first + _WINDOW, self.steps_per_epoch)
        low = (first - len(counts) - 1) / self.steps_per_epoch
        high = (last + len(counts) + 1) / self.steps_per_epoch
        begins = np.clip(np.floor(low * counts - shifts), 0, counts).astype(np.int64)
        ends = np.clip(np.ceil(high * counts - shifts) + 1, 0, counts).astype(np.int64)
        ordinals = np.concatenate([np.arange(*span) for span in zip(begins, ends, strict=True)])
        owners = np.repeat(np.arange(len(counts)), ends - begins)
        places = (ordinals + shifts[owners]) / counts[owners]
        order = np.lexsort((offsets[owners], places))[first - begins.sum() : last - begins.sum()]
        return owners[order], ordinals[order]

    def _by_tokens(
        self, source: str, budget: TokenBudget, epoch: int, ordinal: int
    ) -> tuple[Indices, int]:
        """One batch of an epoch, and the number of its pass in the epoch.

        Passes follow one another without regard to epochs, which may end within one.
        """
        before = epoch * self.batches[source]
        number, batch = divmod(before + ordinal, budget.batches)
        order = self._passes.get((source, "tokens", number, 0), self._pass)
        return budget.batch(order, batch), number - before // budget.batches

    def _draws(self, source: str, epoch: int, start: int, stop: int) -> tuple[Indices, Indices]:
        """Draws [start, stop) of an epoch of one source: sample indices and repeats.

        An epoch is some whole passes over the samples, then a part of one more. Successive epochs
        take their parts from the same pass, as long as it has enough left.
        """
        samples = self.sources[source].num_samples
        whole, part = divmod(self.batches[source] * self.sources[source].batch_size, samples)
        indices, repeats = [], []
        while start < stop:
            number, first = divmod(start, samples)
            last = min(samples, first + stop - start)
            start += last - first
            if number < whole:
                key = (source, "whole", epoch, number)
            else:
                turns = samples // part
                key = (source, "part", epoch // turns, 0)
                first += epoch % turns * part
                last += epoch % turns * part
            order = self._passes.get(key, self._pass)
            indices.append(order[first:last])
            repeats.append(np.full(last - first, number, np.int64))
        return np.concatenate(indices), np.concatenate(repeats)

    def _pass(self, key: tuple[str, str, int, int]) -> _Pass:
        return _Pass((self.seed, *key), self.sources[key[0]], self.block_shards)


class _Pass:
    """A shuffled pass over the samples of a source, of which only the blocks in use are made."""

    def __init__(self, key: tuple[str | int, ...], source: SourceSize, block_shards: int) -> None:
        self._key = key
        self._source = source
        shards = generator(*key, "shards").permutation(len(source.shard_samples))
        self.shards = [
            shards[first : first + block_shards] for first in range(0, len(shards), block_shards)
        ]
        ends = np.cumsum(source.shard_samples[shards])
        self._ends = np.append(ends[block_shards - 1 :: block_shards], ends[-1])
        self._blocks: LRU[int, Indices] = LRU(4)

    def __getitem__(self, span: slice) -> Indices:
        start, stop = int(span.start), int(span.stop)
        pieces = []
        while start < stop:
            block = int(np.searchsorted(self._ends, start, side="right"))
            begin = int(self._ends[block - 1]) if block else 0
            end = min(stop, int(self._ends[block]))
            order = self.block(block)
            pieces.append(order[start - begin : end - begin])
            start = end
        return np.concatenate(pieces)

    def block(self, number: int) -> Indices:
        """The samples of a block of shards, shuffled."""
        return self._blocks.get(number, self._block)

    def _block(self, block: int) -> Indices:
        spans = self._source.spans(self.shards[block])
        indices = np.concatenate([np.arange(*span) for span in spans])
        return generator(*self._key, "block", block).permutation(indices)


def _check(sources: Mapping[str, SourceSize], block_shards: int) -> None:
    if not sources:
        raise ValueError("no sources: data.sources is empty")
    if block_shards < 1:
        raise ValueError(f"block_shards must be at least 1, got {block_shards}")
    weighted = [name for name, source in sources.items() if source.weight is not None]
    if weighted and len(weighted) < len(sources):
        bare = next(name for name in sources if name not in weighted)
        raise ValueError(
            f"source {weighted[0]!r} has a weight and {bare!r} has none: give one to every source, "
            "or to none, so that they are mixed by size x repeat"
        )
    for name, source in sources.items():
        if source.repeat <= 0:
            raise ValueError(f"sources.{name}.repeat must be above 0, got {source.repeat}")
        if source.weight is not None and source.weight <= 0:
            raise ValueError(f"sources.{name}.weight must be above 0, got {source.weight}")
        if source.weight is not None and source.repeat != 1:
            raise ValueError(
                f"source {name!r} has weight={source.weight} and repeat={source.repeat}: sources "
                "are mixed by weights or by size x repeat, never both"
            )
        if source.batch_size < 1:
            raise ValueError(f"sources.{name}.batch_size must be at least 1")
        if source.budget is None and source.num_samples < source.batch_size:
            raise ValueError(
                f"source {name!r} has {source.num_samples} samples, fewer than its global batch of "
                f"{source.batch_size}: lower data.batch_size, or "
                f"data.sources.{name}.batch_size where it is set (both count per device)"
            )


def _count_batches(
    sources: dict[str, SourceSize], drop_last: bool, epoch_steps: int | None
) -> dict[str, int]:
    by_size = {}
    for name, source in sources.items():
        if source.budget is not None:
            by_size[name] = max(1, round(source.repeat * source.budget.batches))
            continue
        draws = source.repeat * source.num_samples
        # A small tolerance, so that 0.1 x 30 / 3 is one batch despite rounding.
        batches = draws / source.batch_size + (1e-9 if drop_last else -1e-9)
        by_size[name] = int(np.floor(batches) if drop_last else np.ceil(batches))
        if by_size[name] < 1:
            raise ValueError(
                f"source {name!r} draws {draws:g} samples an epoch (repeat={source.repeat:g}), "
                f"fewer than its global batch of {source.batch_size}: raise repeat or lower "
                "data.batch_size"
            )
    if next(iter(sources.values())).weight is None:
        if epoch_steps is not None:
            raise ValueError(
                "epoch_steps goes with weights; without them the sources' sizes and repeats give "
                "an epoch its length"
            )
        return by_size
    steps = sum(by_size.values()) if epoch_steps is None else epoch_steps
    weights = np.array([source.weight for source in sources.values()], np.float64)
    shares = steps * weights / weights.sum()
    counts = np.floor(shares).astype(int)
    # Largest remainders get the batches that rounding down has left.
    counts[np.argsort(counts - shares, kind="stable")[: steps - counts.sum()]] += 1
    for name, count in zip(sources, counts, strict=True):
        if count < 1:
            raise ValueError(
                f"source {name!r} gets no batch in an epoch of {steps}: raise its weight or "
                "epoch_steps"
            )
    return dict(zip(sources, counts.tolist(), strict=True))
