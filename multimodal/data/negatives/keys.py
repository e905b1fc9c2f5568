"""A source's samples by their keys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Names = NDArray[np.bytes_]
Indices = NDArray[np.int64]


class KeyIndex:
    """Keys to indices, as two arrays.

    Args:
        keys: of the samples, in the source's order.

    Raises:
        ValueError: if two samples have the same key.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.names = encoded(keys)
        self._order = np.argsort(self.names, kind="stable")
        self._sorted = self.names[self._order]
        same = self._sorted[1:] == self._sorted[:-1]
        if same.any():
            twice = bytes(self._sorted[1:][same][0]).decode()
            raise ValueError(
                f"two samples have the key {twice!r}: listed negatives are found by their keys, "
                "which must differ; pack the source anew with keys of its own"
            )

    def find(self, keys: Names) -> Indices:
        """The index of each key; -1 where no sample has it."""
        width = max(self.names.dtype.itemsize, keys.dtype.itemsize)
        keys = keys.astype(f"S{width}")
        places = np.searchsorted(self._sorted, keys).clip(max=len(self._sorted) - 1)
        is_known = self._sorted[places] == keys
        return np.where(is_known, self._order[places], -1)


def encoded(keys: Sequence[str]) -> Names:
    """Keys as an array of bytes."""
    return np.array([key.encode() for key in keys] or [b""], "S")[: len(keys)]
