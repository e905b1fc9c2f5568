"""The samples of one shard as they come out of a stream, by webdataset's tar reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from multimodal.data.errors import DecodeError, ShardError
from multimodal.data.shards import BLOCK, split_name
from multimodal.data.tally import Rejection


class Streamed:
    """One sample as it came: a shard of a single place."""

    def __init__(self, shard: str, key: str) -> None:
        self.shard = shard
        self.path = Path(shard)  # names it in messages, and is never opened
        self.keys = [key]
        self.members: dict[str, bytes] = {}
        self.twice: str | None = None

    def fields(self, index: int) -> list[str]:
        """Names of the members."""
        return list(self.members)

    def size(self, index: int, field: str) -> int:
        """Bytes of one member."""
        return len(self.members[field])

    def read(self, index: int, field: str) -> bytes:
        """Content of one member."""
        return self.members[field]

    def check(self, index: int) -> None:
        """Refuses a sample with two members of one name."""
        if self.twice is not None:
            raise DecodeError("duplicate_member", f"member {self.twice!r} occurs twice")


def read_shard(source: str, url: str) -> Iterator[Streamed | Rejection]:
    """The samples of one shard as they come; at a fault, its name, and no more of the shard.

    The members of a sample stand next to each other and never cross a shard's end. The sample
    that a fault or a missing end mark leaves open is not delivered.
    """
    from webdataset.tariterators import tar_file_iterator

    name = url.rpartition("/")[2]
    sample: Streamed | None = None
    try:
        with _Tail(_open(url)) as stream:
            # skip_meta: nothing is passed over in silence
            for member in tar_file_iterator(cast("Any", stream), skip_meta=None):
                key, field = split_name(member["fname"])
                if not field:
                    continue
                if sample is None or key != sample.keys[0]:
                    if sample is not None:
                        yield sample
                    sample = Streamed(name, key)
                if field in sample.members:
                    sample.twice = member["fname"]
                sample.members[field] = member["data"]
            if not stream.ended:
                raise ShardError(url, stream.position, "cut: ends without an end mark", "shard_cut")
    except Exception as error:  # a file system, a tar reader: each has errors of its own
        reason = error.reason if isinstance(error, ShardError) else "shard"
        key = sample.keys[0] if sample is not None else ""
        yield Rejection(source, name, key, reason, f"{type(error).__name__}: {error}", True)
        return
    if sample is not None:
        yield sample
    else:
        yield Rejection(source, name, "", "shard_format", "has no samples", True)


def _open(url: str) -> BinaryIO:
    if url.startswith("pipe:"):  # allowed by name, or the source would not be there
        from webdataset.gopen import gopen

        return cast("BinaryIO", gopen(url))
    import fsspec

    return cast("BinaryIO", fsspec.open(url, "rb").open())


class _Tail:
    """A stream that remembers whether it ends with the zeros that end a tar."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._last = b""
        self.position = 0

    def read(self, size: int = -1) -> bytes:
        """Bytes of the stream."""
        data = self._stream.read(size)
        self.position += len(data)
        self._last = (self._last + data)[-BLOCK:]
        return data

    @property
    def ended(self) -> bool:
        """Whether what was read last is an end mark."""
        return self._last == bytes(BLOCK)

    def __enter__(self) -> _Tail:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
