"""Listed negatives that are other samples of the source: from their keys to indices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from multimodal.data.errors import DecodeError
from multimodal.data.negatives.keys import Indices, KeyIndex, encoded
from multimodal.data.negatives.listing import Listing, texts_under
from multimodal.data.negatives.table import NegativeTable


class OtherSamples:
    """Which samples of a source a sample lists, by index.

    Keys and tables are read when they are first needed, once in each process.

    Args:
        keys: the source's keys, in its order.
    """

    def __init__(self, keys: Callable[[], Sequence[str]]) -> None:
        self._read_keys = keys
        self._keys: KeyIndex | None = None
        self._tables: dict[str, tuple[Indices, Indices]] = {}

    def of(self, listing: Listing, index: int, metadata: Mapping[str, Any]) -> list[int]:
        """Indices of the samples that sample ``index`` lists.

        Raises:
            DecodeError: if its JSON lists a key that no sample has.
            ValueError: if a table is not of this source.
        """
        if listing.table is not None:
            rows, negatives = self._table(listing.table)
            row = rows[index]
            indices = negatives[row] if row >= 0 else rows[:0]
            return [int(other) for other in indices if other >= 0]
        if listing.samples is None:
            return []
        keys = texts_under(metadata, listing.samples)
        if not keys:
            return []
        places = self._index().find(encoded(keys))
        if (places < 0).any():
            unknown = keys[int(np.flatnonzero(places < 0)[0])]
            raise DecodeError(
                "metadata", f"{listing.samples!r} lists {unknown!r}, the key of no sample here"
            )
        return [int(place) for place in places if place != index]

    def _index(self) -> KeyIndex:
        if self._keys is None:
            self._keys = KeyIndex(self._read_keys())
        return self._keys

    def _table(self, path: str) -> tuple[Indices, Indices]:
        """The row of each sample of the source, and each row's negatives as indices."""
        if path not in self._tables:
            table, index = NegativeTable.read(path), self._index()
            places = index.find(table.keys)
            if not (places >= 0).any():
                raise ValueError(
                    f"{path}: none of its {len(places)} keys is of this source; mine it anew"
                )
            rows = np.full(len(index.names), -1, np.int64)
            rows[places[places >= 0]] = np.flatnonzero(places >= 0)
            negatives = np.where(table.negatives >= 0, places[table.negatives], -1)
            self._tables[path] = rows, negatives
        return self._tables[path]
