"""The candidates of one direction of a pair: the batch, what its samples list, and past ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from multimodal.objectives.matches import SampleKeys, matches


class ListedColumns(NamedTuple):
    """Listed negatives among the candidates.

    Attributes:
        keys: whose they are.
        owners: sample ids of the only anchors that are compared with each; None for all.
    """

    keys: SampleKeys
    owners: Tensor | None


@dataclass(frozen=True, slots=True)
class Columns:
    """The candidates of one direction, and which of them are an anchor's.

    The column side's rows are the batch's and then those that are listed; past ones follow.

    Attributes:
        batch: of the batch's rows.
        keys_are_positives: see `matches`.
        listed: of the rows after the batch's, and who may be compared with them: negatives that
            samples list; None where there are none.
        past: of the queue's rows.
        in_batch: whether the batch's rows are candidates; if not, only the listed ones are.
    """

    batch: SampleKeys
    keys_are_positives: bool
    listed: ListedColumns | None = None
    past: SampleKeys | None = None
    in_batch: bool = True

    @property
    def used(self) -> slice:
        """The rows of the column side that are candidates."""
        return slice(None) if self.in_batch else slice(len(self.batch), None)

    def keys(self) -> SampleKeys:
        """Of all candidates."""
        keys = [self.batch] if self.in_batch else []
        keys += [] if self.listed is None else [self.listed.keys]
        joined = keys[0] if len(keys) == 1 else keys[0].joined(keys[1])
        return joined if self.past is None else joined.followed_by(self.past)

    def matches(self, anchors: SampleKeys, candidates: SampleKeys) -> tuple[Tensor, Tensor]:
        """Positives and negatives ``[A, C]``; listed negatives are never positives."""
        positives, negatives = matches(anchors, candidates, self.keys_are_positives)
        if self.listed is not None:
            start = len(self.batch) if self.in_batch else 0
            columns = slice(start, start + len(self.listed.keys))
            positives[:, columns] = False
            if self.listed.owners is not None:
                own = anchors.sample_ids[:, None] == self.listed.owners
                negatives[:, columns] &= own
        return positives, negatives
