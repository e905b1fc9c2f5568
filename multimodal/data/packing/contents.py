"""Where the bytes of a member are: a file, another shard, a table, a URL."""

from __future__ import annotations

import stat
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from multimodal.core.extras import module_of
from multimodal.core.hashing import stable_hash
from multimodal.data.errors import BadSampleError
from multimodal.data.packing.fetch import fetch
from multimodal.data.packing.tables.encoding import decode_text
from multimodal.data.parquet import open_parquet
from multimodal.data.shards.tar import Shard


class Content(Protocol):
    """The bytes of one member, which are read when they are packed."""

    @property
    def size(self) -> int:
        """Their number, about."""
        ...

    def read(self, most: int) -> bytes:
        """The bytes.

        Raises:
            OSError: if they cannot be read.
            BadSampleError: if there are more than ``most``, or they are not what was expected.
        """
        ...

    def stamp(self) -> Hashable:
        """Equal as long as the bytes are."""
        ...


@dataclass(frozen=True, slots=True)
class InFile:
    """A file; a text is converted to UTF-8 if it has a byte-order mark or an ``encoding``."""

    path: Path
    size: int = 0
    text: bool = False
    encoding: str | None = None

    def read(self, most: int) -> bytes:
        """See `Content`."""
        status = self.path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadSampleError("unreadable", f"{self.path} is not a regular file")
        _check_size(status.st_size, most)
        data = self.path.read_bytes()
        if not self.text:
            return data
        try:
            return decode_text(data, self.encoding)
        except ValueError as error:
            raise BadSampleError("encoding", f"{self.path}: {error}") from error

    def stamp(self) -> Hashable:
        """See `Content`."""
        return str(self.path), *_stamp(self.path)


@dataclass(frozen=True, slots=True)
class InShard:
    """A member of another shard: its sample's place there, and its field."""

    path: Path
    place: int
    field: str
    size: int = 0

    def read(self, most: int) -> bytes:
        """See `Content`."""
        _check_size(self.size, most)
        return _shard(self.path, _stamp(self.path)).read(self.place, self.field)

    def stamp(self) -> Hashable:
        """See `Content`."""
        return str(self.path), self.place, self.field, *_stamp(self.path)


@dataclass(frozen=True, slots=True)
class InTable:
    """A value of a Parquet or Arrow file.

    Attributes:
        path: of the file.
        group: of its row groups; of an Arrow file always 0.
        row: in the group.
        column: its name.
        steps: into a struct (names) or a list (numbers).
        size: bytes, about.
    """

    path: Path
    group: int
    row: int
    column: str
    steps: tuple[str | int, ...] = ()
    size: int = 0

    def read(self, most: int) -> bytes:
        """See `Content`."""
        value = _column(self.path, _stamp(self.path), self.group, self.column)[self.row]
        for step in self.steps:
            value = value[step]
        data = value.as_py()
        if not isinstance(data, bytes):
            raise BadSampleError("unreadable", f"{self.path}, {self.column}: no bytes")
        _check_size(len(data), most)
        return data

    def stamp(self) -> Hashable:
        """See `Content`."""
        return str(self.path), self.group, self.row, self.column, self.steps, *_stamp(self.path)


@dataclass(frozen=True, slots=True)
class AtURL:
    """What a URL leads to."""

    url: str
    size: int = 0

    def read(self, most: int) -> bytes:
        """See `Content`."""
        return fetch(self.url, most)

    def stamp(self) -> Hashable:
        """See `Content`."""
        return self.url


@dataclass(frozen=True, slots=True)
class Inline:
    """Bytes that are there already."""

    data: bytes

    @property
    def size(self) -> int:
        """Their number."""
        return len(self.data)

    def read(self, most: int) -> bytes:
        """See `Content`."""
        _check_size(len(self.data), most)
        return self.data

    def stamp(self) -> Hashable:
        """See `Content`."""
        return stable_hash(self.data)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise BadSampleError("too_large", f"{size} bytes, over max_bytes={most}")


def _stamp(path: Path) -> tuple[int, int] | tuple[()]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=32)
def _shard(path: Path, stamp: Hashable) -> Shard:
    return Shard(path)


@lru_cache(maxsize=4)
def _column(path: Path, stamp: Hashable, group: int, column: str) -> Any:
    """A column of a row group; the last few are kept."""
    arrow = module_of("shards", "pyarrow", f"{path.suffix} files")
    try:
        if path.suffix == ".parquet":
            with open_parquet(path, "shards", "Parquet files") as file:
                return file.read_row_group(group, columns=[column]).column(column)
        from multimodal.data.packing.tables.columnar import open_arrow

        return open_arrow(path).column(column)
    except (arrow.ArrowException, OSError) as error:
        raise BadSampleError("unreadable", f"{path}: {error}") from error
