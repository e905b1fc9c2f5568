"""The tars of a table, opened when they are needed, near or far."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from multimodal.data.errors import ShardError
from multimodal.data.lru import LRU
from multimodal.data.shards.remote import RemoteShard, ShardCache
from multimodal.data.shards.table import ShardTable
from multimodal.data.shards.tar import Shard

_OPEN_SHARDS = 32  # kept mapped in each process
_RETRY_AFTER_S = 60.0  # seconds until a shard that could not be read is tried once more


class ShardFiles:
    """Opens the shards of a table by their numbers.

    Args:
        table: of the shards.
        folder: or URL that their names are relative to.
        remote: cache of those that are behind URLs; None where they are local.
        verify: whether a local shard's hash is compared when it is first opened; remote ones are
            verified on arrival.
    """

    def __init__(
        self, table: ShardTable, folder: str, remote: ShardCache | None, verify: bool
    ) -> None:
        self.table = table
        self.folder = folder
        self.remote = remote
        self._verify = verify and remote is None
        self._verified: set[int] = set()  # shards whose hash was right
        # Time of the next attempt, last error.
        self._broken: dict[int, tuple[float, ShardError]] = {}
        self._shards: LRU[int, Shard] = LRU(_OPEN_SHARDS)

    def open(self, number: int) -> Shard:
        """One shard; those used last stay open.

        Raises:
            ShardError: if it cannot be read, or is not what the table says.
        """
        return self._shards.get(number, self._open)

    def keys(self) -> list[str]:
        """The keys of all samples of the table, in order; opens every shard.

        Raises:
            ValueError: if shards are behind a URL: all of them would be fetched for it.
            ShardError: if one cannot be read.
        """
        if self.remote is not None:
            raise ValueError(
                f"{self.folder}: listed negatives that are other samples need local shards; fetch "
                "them, or list texts or files instead"
            )
        keys: list[str] = []
        for number in range(len(self.table)):
            names = self.open(number).keys
            keys += [names[place] for place in self.table.places_of(number).tolist()]
        return keys

    def fetch_ahead(self, numbers: Iterable[int]) -> None:
        """Starts to fetch these shards if they are remote."""
        if self.remote is not None:
            self.remote.fetch_ahead(self._remote_shard(int(number)) for number in numbers)

    def _remote_shard(self, number: int) -> RemoteShard:
        return RemoteShard(
            f"{self.folder}/{self.table.name(number)}",
            int(self.table.bytes[number]),
            self.table.sha256[number].tobytes(),
        )

    def _open(self, number: int) -> Shard:
        # Each sample of a broken shard needs it: retry the file only after a while.
        if number in self._broken and time.monotonic() < self._broken[number][0]:
            raise self._broken[number][1]
        verify = self._verify and number not in self._verified

        def opened(path: Path) -> Shard:
            return Shard(
                path,
                samples=int(self.table.stored[number]),
                size=int(self.table.bytes[number]),
                sha256=self.table.sha256[number].tobytes() if verify else None,
            )

        try:
            if self.remote is None:
                shard = opened(Path(self.folder) / self.table.name(number))
            else:
                shard = self.remote.open(self._remote_shard(number), opened)
        except ShardError as error:
            self._broken[number] = (time.monotonic() + _RETRY_AFTER_S, error)
            raise
        if verify:
            self._verified.add(number)
        return shard


def numbers_of(table: ShardTable, indices: Iterable[int]) -> list[int]:
    """The shards that hold these samples, each once."""
    places = np.fromiter(indices, np.int64)
    numbers = np.unique(np.searchsorted(table.starts, places, side="right") - 1)
    return [int(number) for number in numbers]
