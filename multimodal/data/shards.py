"""Random access to the samples of a local tar: memory-mapped, indexed from its own headers.

Formats: POSIX.1-1988 ustar, POSIX.1-2001 pax (``path`` and ``size`` records) and GNU long names.
Samples follow the WebDataset convention: a member is named KEY.FIELD, where the field begins at
the first dot of the base name, and the members of a sample stand next to each other. A key is a
name and never becomes a path.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multimodal.data.errors import DecodeError, ShardError

BLOCK = 512
_ZEROS = bytes(BLOCK)
_LONGEST_HEADER = 1 << 20  # bytes of a pax or long-name header; real ones have hundreds
_FILE, _FOLDER = b"0\0007", b"5"
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"


class _Member(NamedTuple):
    name: str
    header: int  # byte at which its header begins, for messages
    start: int
    size: int


class Shard:
    """One tar, read by position.

    Opening maps the file and walks its headers once (some microseconds a member); reading a member
    afterwards is one slice of the map. The map is shared between the processes that fork from the
    one that opened it.

    A sample is a run of members with one key. Where a key comes back after others, or a member of
    a sample comes twice, nobody can say what belongs together: every run of that key is a sample
    that ``check`` refuses, and the others are as good as ever.

    Args:
        path: a local, uncompressed tar.
        samples: how many samples it must hold; None to take what is there.
        size: how many bytes the file must have; None to take what is there.
        sha256: what the file's hash must be, 32 bytes; None not to look (reads the whole file).

    Attributes:
        keys: the samples' keys, in order.
        strays: members that are no part of a sample, as their names are not KEY.FIELD.

    Raises:
        ShardError: when the file is missing, cut, or has another size, hash or number of samples
            than given, when a header is broken, and when a member is neither a file nor a folder.
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
            detail = f"its content has another hash than the manifest says ({sha256.hex()[:12]}...)"
            raise ShardError(str(path), 0, detail, "shard_hash")
        self.keys: list[str] = []
        self.strays: list[str] = []
        self._faults: dict[int, tuple[str, str]] = {}  # reason and detail of samples that are bad
        fields: list[list[str]] = []
        starts: list[int] = []
        sizes: list[int] = []
        seen: dict[str, int] = {}
        for member in self._members():
            key, field = split_name(member.name)
            if not field:
                self.strays.append(member.name)
                continue
            if not self.keys or key != self.keys[-1]:
                if key in seen:
                    fault = ("duplicate_key", f"key {key!r} occurs twice, with others between")
                    self._faults[seen[key]] = self._faults[len(self.keys)] = fault
                seen[key] = len(self.keys)
                self.keys.append(key)
                fields.append([])
            if field in fields[-1]:
                detail = f"member {member.name!r} occurs twice"
                self._faults[len(self.keys) - 1] = ("duplicate_member", detail)
                continue
            fields[-1].append(field)
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

    def check(self, index: int) -> None:
        """Refuses a sample whose members cannot be told from another's.

        Raises:
            DecodeError: with the reason ``duplicate_key`` or ``duplicate_member``.
        """
        if index in self._faults:
            raise DecodeError(*self._faults[index])

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

    def _members(self) -> Iterator[_Member]:
        """Walks the headers up to the archive's end mark."""
        data, path = self._map, str(self.path)
        position = 0
        extended: dict[str, str] = {}  # what pax and long-name headers say of the next member
        while True:
            header = data[position : position + BLOCK]
            if len(header) < BLOCK:
                detail = "cut: ends without an end mark"
                raise ShardError(path, min(position, len(data)), detail, "shard_cut")
            if header == _ZEROS:
                return
            kind, size, name = _parse_header(header, path, position)
            size = _integer(extended.get("size"), size, path, position)
            start = position + BLOCK
            if start + size > len(data):
                missing = start + size - len(data)
                detail = f"cut: {missing} bytes of {name!r} are missing"
                raise ShardError(path, position, detail, "shard_cut")
            if kind in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
                if size > _LONGEST_HEADER:
                    raise ShardError(path, position, f"an extended header of {size} bytes")
                content = data[start : start + size]
                if kind == _PAX:
                    extended.update(_parse_pax(content, path, position))
                elif kind == _LONG_NAME:
                    extended["path"] = _text(content.rstrip(b"\0"))
            else:
                name = extended.get("path", name)
                extended = {}
                if kind in _FILE:
                    yield _Member(name, position, start, size)
                elif kind != _FOLDER:
                    raise ShardError(
                        path, position, f"{name!r} is of type {kind!r}: only files can be read"
                    )
            position = start + -(-size // BLOCK) * BLOCK


def _open(path: Path, size: int | None) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            actual = file.seek(0, 2)
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


def _parse_header(header: bytes, path: str, position: int) -> tuple[bytes, int, str]:
    """Type, content size and name; the checksum tells a header from anything else."""
    expected = _number(header[148:156])
    # The sum is taken with the checksum field itself read as eight spaces.
    actual = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    size = _number(header[124:136])
    if expected != actual or size is None or size < 0:
        raise ShardError(path, position, f"no tar header here (begins with {header[:16]!r})")
    name = _text(header[:100].split(b"\0", 1)[0])
    if header[257:263] == b"ustar\0":  # GNU's magic differs and keeps other things in the prefix
        prefix = _text(header[345:500].split(b"\0", 1)[0])
        name = f"{prefix}/{name}" if prefix else name
    return header[156:157], size, name


def _number(field: bytes) -> int | None:
    """Octal digits, or GNU's base 256 where the top bit is set; None for anything else."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        return None


def _parse_pax(content: bytes, path: str, position: int) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE\\n", where LENGTH counts the whole record."""
    records: dict[str, str] = {}
    at = 0
    while at < len(content):
        digits, space, _ = content[at : at + 20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        key, equals, value = content[at + len(digits) + 1 : at + length].partition(b"=")
        if not equals or value[-1:] != b"\n" or at + length > len(content):
            raise ShardError(path, position, "a broken pax header")
        if key.startswith(b"GNU.sparse"):
            raise ShardError(path, position, "a sparse member: only plain files can be read")
        records[_text(key)] = _text(value[:-1])
        at += length
    return records


def _integer(text: str | None, default: int, path: str, position: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise ShardError(path, position, f"a pax header gives the size {text!r}")
    return int(text)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
