"""The samples of one shard as they come out of a stream."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from multimodal.data.errors import DecodeError, ShardError
from multimodal.data.loading.tally import Rejection
from multimodal.data.shards.tar import split_name
from multimodal.data.shards.tar_headers import Member, walk

MAX_SAMPLE = 1 << 30  # bytes that are kept of one sample
_CHUNK = 1 << 20
_COMPRESSED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}


class Streamed:
    """One streamed sample: a shard with a single sample."""

    def __init__(self, shard: str, key: str) -> None:
        self.shard = shard
        self.path = Path(shard)  # for messages, never opened
        self.keys = [key]
        self.members: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}
        self.kept = 0  # bytes
        self.duplicate_member: str | None = None

    def add(self, member: Member, field: str, content: Callable[[Member], bytes]) -> None:
        """Takes a member; its content is read only where the sample has room for it."""
        if field in self.sizes:
            self.duplicate_member = member.name
        self.sizes[field] = member.size
        self.kept += member.size
        if self.kept <= MAX_SAMPLE:
            self.members[field] = content(member)

    def fields(self, index: int) -> list[str]:
        """Names of the members."""
        return list(self.sizes)

    def size(self, index: int, field: str) -> int:
        """Bytes of one member."""
        return self.sizes[field]

    def read(self, index: int, field: str) -> bytes:
        """Content of one member.

        Raises:
            DecodeError: if it was too large to be kept.
        """
        if field not in self.members:
            detail = f"{field} has {self.sizes[field]:,} bytes: a sample may have {MAX_SAMPLE:,}"
            raise DecodeError("too_large", detail)
        return self.members[field]

    def check(self, index: int) -> None:
        """Refuses a sample with two members of one name."""
        if self.duplicate_member is not None:
            raise DecodeError("duplicate_member", f"member {self.duplicate_member!r} occurs twice")


def read_shard(source: str, url: str) -> Iterator[Streamed | Rejection]:
    """The samples of one shard in order; on an error, its reason, and nothing more of the shard.

    The members of a sample stand next to each other and never cross a shard's end. The sample that
    an error or a missing end mark leaves open is not delivered.
    """
    name = url.rpartition("/")[2]
    sample: Streamed | None = None
    try:
        with _open(url) as stream:
            reader = _Reader(stream)
            for member in walk(reader.read_at, url):
                key, field = split_name(member.name)
                if not field:
                    continue
                # Its content is read first: an error there leaves the previous sample incomplete.
                same = sample is not None and key == sample.keys[0]
                current = sample if sample is not None and same else Streamed(name, key)
                current.add(member, field, lambda entry: _content(reader, entry, url))
                if sample is not None and not same:
                    yield sample
                sample = current
    except Exception as error:  # file systems and decompressors each have their own errors
        reason, message = "shard", f"shard {url}: {type(error).__name__}: {error}"
        if isinstance(error, ShardError):
            reason, message = error.reason, str(error)
        key = sample.keys[0] if sample is not None else ""
        yield Rejection(source, name, key, reason, message, True)
        return
    if sample is not None:
        yield sample
    else:
        yield Rejection(source, name, "", "shard_format", "has no samples", True)


def _content(reader: _Reader, member: Member, url: str) -> bytes:
    data = reader.read_at(member.start, member.size)
    if len(data) < member.size:
        detail = f"cut: {member.size - len(data)} bytes of {member.name!r} are missing"
        raise ShardError(url, member.header, detail, "shard_cut")
    return data


@contextmanager
def _open(url: str) -> Iterator[BinaryIO]:
    """The bytes of a tar, decompressed where it is compressed."""
    if url.startswith("pipe:"):  # allowed by name, or the source would not be there
        from webdataset.gopen import gopen

        opened = cast("BinaryIO", gopen(url))
    else:
        import fsspec

        opened = cast("BinaryIO", fsspec.open(url, "rb").open())
    with closing(opened):
        stream = cast("BinaryIO", _Ahead(opened))
        begin = stream.peek(6)  # type: ignore[attr-defined]
        for magic, decompressed in _COMPRESSED.items():
            if begin.startswith(magic):
                stream = decompressed(stream)
        yield stream


class _Ahead:
    """A stream whose first bytes can be looked at before they are read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._begin = b""

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay."""
        self._begin = _exactly(self, size)
        return self._begin

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        if not self._begin:
            return self._stream.read(size)
        size = len(self._begin) if size < 0 else size
        begin, self._begin = self._begin[:size], self._begin[size:]
        return begin


class _Reader:
    """Reads a stream at rising positions."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0

    def read_at(self, position: int, size: int) -> bytes:
        """The bytes at ``position``; fewer where the stream ends."""
        while self._position < position:
            if not (skipped := self._stream.read(min(position - self._position, _CHUNK))):
                return b""
            self._position += len(skipped)
        data = _exactly(self._stream, size)
        self._position += len(data)
        return data


def _exactly(stream: BinaryIO | _Ahead, size: int) -> bytes:
    """``size`` bytes, of a stream that may give fewer at a time; fewer only at its end."""
    parts: list[bytes] = []
    while size > 0 and (data := stream.read(min(size, _CHUNK))):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
