"""Whose a row of embeddings is, and which pairs of rows are positives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class SampleKeys:
    """Sample ids and positive keys of N rows of any modality.

    Attributes:
        sample_ids: ``[N]`` int64.
        positive_keys: ``[N]`` int64.
        filled: ``[N]`` bool, False at a queue's empty slots; None where all rows are real.
    """

    sample_ids: Tensor
    positive_keys: Tensor
    filled: Tensor | None = None

    def __len__(self) -> int:
        return int(self.sample_ids.shape[0])

    def __getitem__(self, rows: slice | Tensor) -> SampleKeys:
        filled = None if self.filled is None else self.filled[rows]
        return SampleKeys(self.sample_ids[rows], self.positive_keys[rows], filled)

    def joined(self, others: SampleKeys) -> SampleKeys:
        """These rows and then others; all of them real."""
        return SampleKeys(
            torch.cat([self.sample_ids, others.sample_ids]),
            torch.cat([self.positive_keys, others.positive_keys]),
        )

    def followed_by(self, past: SampleKeys) -> SampleKeys:
        """These rows, all real, and then those of a queue."""
        real = torch.ones_like(self.sample_ids, dtype=torch.bool)
        filled = torch.ones_like(past.sample_ids, dtype=torch.bool)
        return SampleKeys(
            torch.cat([self.sample_ids, past.sample_ids]),
            torch.cat([self.positive_keys, past.positive_keys]),
            torch.cat([real, filled if past.filled is None else past.filled]),
        )


def matches(
    anchors: SampleKeys, candidates: SampleKeys, keys_are_positives: bool
) -> tuple[Tensor, Tensor]:
    """Positives and potential negatives.

    A candidate with the anchor's sample id is its positive. One with an equal positive key is never
    its negative: a positive too, or left out.

    Args:
        anchors: of A rows.
        candidates: of C rows.
        keys_are_positives: whether equal keys make positives.

    Returns:
        positives ``[A, C]`` bool and negatives ``[A, C]`` bool, disjoint.
    """
    same_sample = anchors.sample_ids[:, None] == candidates.sample_ids
    related = same_sample | (anchors.positive_keys[:, None] == candidates.positive_keys)
    positives = related if keys_are_positives else same_sample
    if candidates.filled is None:
        return positives, ~related
    return positives & candidates.filled, ~related & candidates.filled


RELATED_PER_ROW = 4  # above this average, lists of positives are too long


ROWS = 1024  # compared at a time


@dataclass(frozen=True, slots=True)
class PositiveIndex:
    """The positives in a matrix of anchors and candidates of one batch.

    Attributes:
        anchors: of the A rows.
        candidates: of the C columns; the anchors' own samples are among them.
        positive_rows: ``[P]`` int64, the row of every positive entry, ascending.
        positive_columns: ``[P]`` int64, its column.
        diagonal: where every anchor has a single relative, its own column, and these follow each
            other: the first one's number. None where there may be more.
        without_negatives: scalar int64, how many rows have no negative.
        keys_are_positives: see `matches`.
    """

    anchors: SampleKeys
    candidates: SampleKeys
    positive_rows: Tensor
    positive_columns: Tensor
    diagonal: int | None
    without_negatives: Tensor
    keys_are_positives: bool = True

    def matches(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Positives and negatives of a part of the matrix; see `identity.matches`."""
        return matches(self.anchors[rows], self.candidates[columns], self.keys_are_positives)

    def fill_all_but_negatives(
        self, tile: Tensor, rows: slice, columns: slice, value: float
    ) -> None:
        """Writes ``value`` wherever the column is not a negative of the row."""
        if self.diagonal is not None:
            tile.diagonal(self.diagonal + rows.start - columns.start).fill_(value)
        else:
            tile.masked_fill_(~self.matches(rows, columns)[1], value)

    def fill_ignored(self, tile: Tensor, rows: slice, columns: slice, value: float) -> None:
        """Writes ``value`` wherever the column is neither a positive nor a negative of the row."""
        if self.diagonal is None and not self.keys_are_positives:
            positives, negatives = self.matches(rows, columns)
            tile.masked_fill_(~(positives | negatives), value)


def related_rows(batch: SampleKeys) -> Tensor:
    """Pairs of different rows with equal ids, and with equal keys: a scalar on the device."""
    return _equal_pairs(batch.sample_ids) + _equal_pairs(batch.positive_keys)


def index_positives(
    batch: SampleKeys, local_rows: slice, keys_are_positives: bool, related: int | None = None
) -> PositiveIndex | None:
    """The layout of a batch's ``local_rows`` rows against all of it; None with too many positives.

    Ranks that share the batch agree on whether it is None.

    Args:
        batch: of all rows.
        local_rows: the anchors.
        keys_are_positives: see `matches`.
        related: `related_rows`, where it is on the host already; None waits for the device.
    """
    if related is None:
        related = int(related_rows(batch))
    if related > RELATED_PER_ROW * len(batch):
        return None
    anchors = batch[local_rows]
    rows = torch.arange(len(anchors), device=batch.sample_ids.device)
    without = rows.new_zeros(())
    if related == 0:
        without += len(anchors) if len(batch) == 1 else 0
        columns = rows + local_rows.start
        return PositiveIndex(
            anchors, batch, rows, columns, local_rows.start, without, keys_are_positives
        )
    entries_by_chunk = [rows.new_zeros(0, 2)]
    for start in range(0, len(anchors), ROWS):
        part = anchors[slice(start, start + ROWS)]
        positives, negatives = matches(part, batch, keys_are_positives)
        without += (~negatives.any(dim=1)).sum()
        entries_by_chunk.append(positives.nonzero() + rows.new_tensor([start, 0]))
    entries = torch.cat(entries_by_chunk)
    return PositiveIndex(
        anchors, batch, entries[:, 0], entries[:, 1], None, without, keys_are_positives
    )


def _equal_pairs(values: Tensor) -> Tensor:
    """Number of ordered pairs of different rows with equal values: a scalar on the device."""
    if not len(values):
        return values.new_zeros(())
    ordered = values.sort().values
    # Not torch.unique, for the number of which the host would have to wait.
    run = F.pad((ordered[1:] != ordered[:-1]).cumsum(dim=0), (1, 0))
    counts = torch.zeros_like(run).scatter_add_(0, run, torch.ones_like(run))
    return (counts * (counts - 1)).sum()
