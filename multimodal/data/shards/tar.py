"""Random access to the samples of a local tar: memory-mapped, indexed from its own headers.

Samples follow the WebDataset convention: a member is named KEY.FIELD, where the field begins at
the first dot of the base name, and the members of a sample stand next to each other. A key is a
name and never becomes a path.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multimodal.data.errors import DecodeError, ShardError
from multimodal.data.shards.tar_headers import walk


class Shard:
    """One tar, read by position.

    Opening maps the file and walks its headers once (some microseconds a member); reading a member
    afterwards is one slice of the map. The map is shared between the processes that fork from the
    one that opened it.

    A sample is a run of members with one key. Where a key comes back after others, or a member of a
    sample occurs twice, the sample is ambiguous: every run of that key is a sample that ``check``
    rejects; the others are unaffected.

    Args:
        path: a local, uncompressed tar.
        samples: how many samples it must hold; None to accept any.
        size: how many bytes the file must have; None to accept any.
        sha256: what the file's hash must be, 32 bytes; None not to look (reads the whole file).

    Attributes:
        keys: the samples' keys, in order.
        stray_members: members outside of any sample, as their names are not KEY.FIELD.

    Raises:
        ShardError: if the file is missing, cut, or has another size, hash or number of samples than
            given, when a header is broken, and when a member is neither a file nor a folder.
    """

    def __init__(
        self,
        path: Path,
        samples: int | None = None,
        size: int | None = None,
        sha256: bytes | None = None,
    ) -> None:
        self.path = path
        self._map = _open(path, size)
        if sha256 is not None and hashlib.sha256(self._map).digest() != sha256:
            detail = f"sha256 differs from the manifest ({sha256.hex()[:12]}...)"
            raise ShardError(str(path), 0, detail, "shard_hash")
        self.keys: list[str] = []
        self.stray_members: list[str] = []
        self._problems: dict[int, tuple[str, str]] = {}  # reason and detail of samples that are bad
        fields: list[dict[str, None]] = []  # ordered
        starts: list[int] = []
        sizes: list[int] = []
        seen: dict[str, int] = {}
        for member in walk(self._slice, str(path), len(self._map)):
            key, field = split_name(member.name)
            if not field:
                self.stray_members.append(member.name)
                continue
            if not self.keys or key != self.keys[-1]:
                if key in seen:
                    problem = ("duplicate_key", f"key {key!r} occurs twice, with others between")
                    self._problems[seen[key]] = self._problems[len(self.keys)] = problem
                seen[key] = len(self.keys)
                self.keys.append(key)
                fields.append({})
            if field in fields[-1]:
                detail = f"member {member.name!r} occurs twice"
                self._problems[len(self.keys) - 1] = ("duplicate_member", detail)
                continue
            fields[-1][field] = None
            starts.append(member.start)
            sizes.append(member.size)
        self._starts: NDArray[np.int64] = np.array(starts, np.int64)
        self._sizes: NDArray[np.int64] = np.array(sizes, np.int64)
        # Samples mostly have the same fields in the same order, so that one layout serves many.
        layouts: dict[tuple[str, ...], dict[str, int]] = {}
        self._layouts = [
            layouts.setdefault(tuple(names), {name: i for i, name in enumerate(names)})
            for names in fields
        ]
        self._first: NDArray[np.int64] = np.cumsum([0, *map(len, fields)])[:-1]
        if samples is not None and len(self.keys) != samples:
            detail = f"holds {len(self.keys)} samples, expected {samples}"
            raise ShardError(str(path), len(self._map), detail, "shard_count")

    def _slice(self, position: int, size: int) -> bytes:
        return self._map[position : position + size]

    def check(self, index: int) -> None:
        """Rejects a sample whose members are ambiguous.

        Raises:
            DecodeError: with the reason ``duplicate_key`` or ``duplicate_member``.
        """
        if index in self._problems:
            raise DecodeError(*self._problems[index])

    def __len__(self) -> int:
        return len(self.keys)

    def fields(self, index: int) -> list[str]:
        """Names of the members of sample ``index``, in the order of the file."""
        return list(self._layouts[index])

    def size(self, index: int, field: str) -> int:
        """Bytes of one member, which need not be read for that.

        Raises:
            KeyError: if the sample has no such member.
        """
        return int(self._sizes[self._first[index] + self._layouts[index][field]])

    def read(self, index: int, field: str) -> bytes:
        """Content of one member.

        Raises:
            KeyError: if the sample has no such member.
        """
        place = self._first[index] + self._layouts[index][field]
        start = int(self._starts[place])
        return self._map[start : start + int(self._sizes[place])]


def _open(path: Path, size: int | None) -> mmap.mmap:
    try:
        # A pipe would wait for its writer, and a device has no end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ShardError(str(path), 0, "is not a regular file", "shard_format")
            actual = status.st_size
            if size is not None and actual != size:
                detail = f"has {actual} bytes, the manifest says {size}"
                raise ShardError(str(path), min(actual, size), detail, "shard_size")
            if actual == 0:
                raise ShardError(str(path), 0, "is empty", "shard_cut")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        detail = f"cannot be opened: {error.strerror}"
        raise ShardError(str(path), 0, detail, "shard_missing") from error


def split_name(name: str) -> tuple[str, str]:
    """Key and field of a member; no field where the name is not KEY.FIELD."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, field = base.partition(".")
    return folder + slash + stem, field if stem else ""
