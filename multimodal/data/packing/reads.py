"""Reads the samples of a shard: URLs ahead of their use, tables group by group."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import IO, Any

from multimodal.data.errors import BadSampleError
from multimodal.data.packing.contents import AtURL, InTable
from multimodal.data.packing.items import Item

_FETCHERS = 16  # URLs that a process fetches at a time
_AHEAD = 64  # samples that are fetched before they are used
_KEPT = 4  # columns of row groups that stay in memory (contents)


def read_all(items: Sequence[Item], most: int) -> Iterator[tuple[Item, Any]]:
    """Every item with its members' bytes and its metadata, or with the error of reading them.

    Args:
        items: in the order in which they come back.
        most: bytes of a member.
    """
    with tempfile.TemporaryFile() as spool:
        items = _spooled(items, most, spool)
        if not any(isinstance(c, AtURL) for item in items for c in item.members.values()):
            for item in items:
                yield item, _read(item, most)
            return
        yield from _ahead(items, most)


def _read(item: Item, most: int) -> Any:
    try:
        return item.read(most)
    except (BadSampleError, OSError) as error:
        return error


def _ahead(items: Sequence[Item], most: int) -> Iterator[tuple[Item, Any]]:
    with ThreadPoolExecutor(_FETCHERS, "fetch") as pool:
        waiting: deque[tuple[Item, Future[Any]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(_read, item, most)))
                if len(waiting) >= _AHEAD:
                    first, result = waiting.popleft()
                    yield first, result.result()
            while waiting:
                first, result = waiting.popleft()
                yield first, result.result()
        finally:
            for _, result in waiting:
                result.cancel()


@dataclass(frozen=True, slots=True)
class _Spooled:
    """Bytes that were copied from a table."""

    file: IO[bytes]
    start: int
    size: int

    def read(self, most: int) -> bytes:
        self.file.seek(self.start)
        return self.file.read(self.size)

    def stamp(self) -> int:
        return self.start


@dataclass(frozen=True, slots=True)
class _Failed:
    """Bytes that could not be read from a table."""

    error: BadSampleError | OSError
    size: int = 0

    def read(self, most: int) -> bytes:
        raise self.error

    def stamp(self) -> int:
        return 0


def _spooled(items: Sequence[Item], most: int, spool: IO[bytes]) -> list[Item]:
    """The items, their bytes copied from tables: of each row group together, in its order.

    The samples of a shard come from everywhere; a row group is read once for all of them.
    """
    wanted = {c for item in items for c in item.members.values() if isinstance(c, InTable)}
    groups = {(each.path, each.group, each.column) for each in wanted}
    if len(groups) <= _KEPT:
        return list(items)
    copied: dict[Any, _Spooled | _Failed] = {}
    for content in sorted(wanted, key=lambda c: (c.path, c.group, c.column, c.row, str(c.steps))):
        start = spool.tell()
        try:
            spool.write(content.read(most))
        except (BadSampleError, OSError) as error:
            copied[content] = _Failed(error)
            continue
        copied[content] = _Spooled(spool, start, spool.tell() - start)
    return [
        replace(item, members={n: copied.get(c, c) for n, c in item.members.items()})
        for item in items
    ]
