"""A shard table as columns: arrays in memory, or memory-mapped files."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from multimodal.core.files import NewFile, sha256

# Limits of one shard, far above real ones, so that a false number costs no memory.
MAX_SAMPLES = 1 << 22
MAX_BYTES = 1 << 44
MAX_NAME = 1024  # bytes of UTF-8; a table gives every name the width of the longest

_DTYPES = {"names": "S", "samples": "i8", "bytes": "i8", "sha256": "u1", "starts": "i8"}
COLUMNS = tuple(_DTYPES)
_CHECKED_AT_A_TIME = 1 << 16  # names
# Names, joined by NULs, among them one that is empty, absolute or leads out of its folder.
_OUTSIDE = re.compile(r"[:\\]|(?:^|\0)(?:/|\0|$)|(?:^|[/\0])\.\.(?:$|[/\0])")


class MappedColumn(np.memmap):
    """An array file mapped to memory; to other processes it travels as its path."""

    path: Path | None = None

    def __reduce__(self) -> Any:
        if self.path is None:  # a part, or the result of a calculation
            return np.asarray(self).__reduce__()
        return open_column, (self.path,)


def open_column(path: Path) -> MappedColumn:
    """Memory-maps an ``.npy`` file.

    Raises:
        ValueError: if it is not an array of numbers or bytes.
    """
    try:
        column: MappedColumn = open_memmap(path, "r").view(MappedColumn)
    except Exception as error:  # numpy raises anything that its header tokenizer does
        raise ValueError(f"{path} is not an array file that can be mapped: {error}") from error
    column.path = path
    return column


class ShardRow(NamedTuple):
    """One shard of a table."""

    name: str
    samples: int
    bytes: int
    sha256: str
    kept: str | None = None  # see `packed`


@dataclass(frozen=True, slots=True)
class ShardTable:
    """The shards of one split, as columns of length S, so that millions of them stay small.

    Attributes:
        names: UTF-8 bytes, relative to the manifest's folder.
        samples: int64, samples in each shard.
        bytes: int64, size of each shard's file.
        sha256: ``[S, 32]`` uint8.
        starts: ``[S + 1]`` int64, index of each shard's first sample, then the number of samples.
        kept: int64, of each sample its place in its shard, where a keep-list leaves some out;
            ``samples`` and ``starts`` count those that are kept. None: all are there.
        whole: int64, samples that each shard's file holds; None: as many as ``samples``.
    """

    names: NDArray[np.bytes_]
    samples: NDArray[np.int64]
    bytes: NDArray[np.int64]
    sha256: NDArray[np.uint8]
    starts: NDArray[np.int64]
    kept: NDArray[np.int64] | None = None
    whole: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, shards: Iterable[ShardRow]) -> ShardTable:
        """The table of validated rows."""
        names, samples, sizes, digests, kept = zip(*shards, strict=True)
        counts = np.array(samples, np.int64)
        sha256 = np.frombuffer(b"".join(map(bytes.fromhex, digests)), np.uint8)
        table = cls(
            names=np.array([name.encode() for name in names]),
            samples=counts,
            bytes=np.array(sizes, np.int64),
            sha256=sha256.reshape(len(counts), 32),
            starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        )
        if all(bits is None for bits in kept):
            return table
        return table.select(
            np.concatenate(
                [unpacked(bits, count) for bits, count in zip(kept, samples, strict=True)]
            )
        )

    @classmethod
    def joined(cls, tables: Sequence[ShardTable]) -> ShardTable:
        """The concatenated shards of several tables."""
        if len(tables) == 1:
            return tables[0]
        samples = np.concatenate([table.samples for table in tables])
        partly = any(table.kept is not None for table in tables)
        return cls(
            names=np.concatenate([table.names for table in tables]),
            samples=samples,
            bytes=np.concatenate([table.bytes for table in tables]),
            sha256=np.concatenate([table.sha256 for table in tables]),
            starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(samples)]),
            kept=np.concatenate([table._places() for table in tables]) if partly else None,
            whole=np.concatenate([table.stored for table in tables]) if partly else None,
        )

    def select(self, mask: NDArray[np.bool_]) -> ShardTable:
        """The samples for which ``mask`` is true; shards of which none is left are gone.

        Raises:
            ValueError: if no sample is left.
        """
        if not mask.any():
            raise ValueError("the keep-list leaves no sample")
        counts = np.add.reduceat(mask.astype(np.int64), self.starts[:-1])
        left = counts > 0
        return ShardTable(
            names=self.names[left],
            samples=counts[left],
            bytes=self.bytes[left],
            sha256=self.sha256[left],
            starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[left])]),
            kept=self._places()[mask],
            whole=self.stored[left],
        )

    @property
    def stored(self) -> NDArray[np.int64]:
        """Samples that each shard's file holds."""
        return self.samples if self.whole is None else self.whole

    def places_of(self, shard: int) -> NDArray[np.int64]:
        """The places in a shard of its samples."""
        if self.kept is None:
            return np.arange(self.samples[shard])
        return self.kept[self.starts[shard] : self.starts[shard + 1]]

    def _places(self) -> NDArray[np.int64]:
        if self.kept is not None:
            return self.kept
        return np.arange(self.num_samples) - np.repeat(self.starts[:-1], self.samples)

    def save(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Writes a file for each column, and returns what a manifest says of them."""
        for name in COLUMNS:
            with NewFile(folder / f"{name}.npy") as file:
                np.save(cast("IO[bytes]", file), np.asarray(getattr(self, name)))
        return {name: _entry(folder / f"{name}.npy") for name in COLUMNS}

    @classmethod
    def mapped(cls, folder: Path, columns: dict[str, dict[str, Any]]) -> ShardTable:
        """The table in ``folder``, mapped.

        Raises:
            ValueError: if a file is not the one in the manifest, or the columns are inconsistent.
        """
        for name in COLUMNS:
            path = folder / f"{name}.npy"
            if not path.is_file() or _entry(path) != columns.get(name):
                raise ValueError(f"{path} is missing, or differs from the manifest")
        table = cls(*(open_column(folder / f"{name}.npy") for name in COLUMNS))
        table._check(folder)
        return table

    def _check(self, folder: Path) -> None:
        """Refuses columns that contradict each other, or what a manifest's list may not hold."""
        for name, kind in _DTYPES.items():
            dtype = getattr(self, name).dtype
            good = dtype.kind == kind if kind == "S" else dtype == np.dtype(kind)
            if not good or getattr(self, name).ndim != 1 + (name == "sha256"):
                raise ValueError(f"{folder / name}.npy holds {dtype} of {_shape(self, name)}")
        shards = len(self.samples)
        lengths = {len(self.names), len(self.bytes), len(self.sha256), len(self.starts) - 1}
        if shards < 1 or lengths != {shards} or self.sha256.shape != (shards, 32):
            raise ValueError(f"the columns in {folder} are of different lengths, or empty")
        for name, most in (("samples", MAX_SAMPLES), ("bytes", MAX_BYTES)):
            column = getattr(self, name)
            if column.min() < 1 or column.max() > most:
                raise ValueError(f"{folder / name}.npy holds numbers that are not in [1, {most:,}]")
        if self.starts[0] or not np.array_equal(np.diff(self.starts), self.samples):
            raise ValueError(f"starts and samples in {folder} are inconsistent")
        if self.names.dtype.itemsize > MAX_NAME:
            raise ValueError(f"{folder}/names.npy: at most {MAX_NAME:,} bytes are possible")
        for first in range(0, shards, _CHECKED_AT_A_TIME):
            _check_names(self.names[first : first + _CHECKED_AT_A_TIME].tolist(), folder)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def num_samples(self) -> int:
        """Samples in all shards together."""
        return int(self.starts[-1])

    def name(self, shard: int) -> str:
        """File name of a shard, relative to the manifest's folder.

        Raises:
            ValueError: if it is outside of that folder.
        """
        name = bytes(self.names[shard]).decode()
        if not is_inside(name):
            raise ValueError(f"the shard's name {name!r} is outside of the manifest's folder")
        return name

    def locate(self, index: int) -> tuple[int, int]:
        """The shard that holds sample ``index``, and the sample's place in it.

        Raises:
            IndexError: if ``index`` is not in [0, num_samples).
        """
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        place = index - int(self.starts[shard]) if self.kept is None else int(self.kept[index])
        return shard, place


def packed(mask: NDArray[np.bool_]) -> str:
    """A keep-list as a manifest holds it: a bit for each sample, in Base64."""
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def unpacked(text: str | None, samples: int) -> NDArray[np.bool_]:
    """What ``packed`` was made of; all are kept if None.

    Raises:
        ValueError: if it is not Base64, or not of so many samples.
    """
    if text is None:
        return np.ones(samples, bool)
    bits = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(bits) != -(-samples // 8):
        raise ValueError(f"{len(bits)} bytes for {samples} samples")
    return np.unpackbits(bits, count=samples).astype(bool)


def is_inside(name: str) -> bool:
    """Whether a relative path stays in its folder, on any system."""
    return "\0" not in name and not _OUTSIDE.search(name)


def _check_names(names: list[bytes], folder: Path) -> None:
    try:
        text = b"\0".join(names).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder}/names.npy: names are not UTF-8: {error}") from error
    if _OUTSIDE.search(text) or text.count("\0") != len(names) - 1:
        raise ValueError(f"{folder}/names.npy: a shard's name is outside of the manifest's folder")


def _shape(table: ShardTable, name: str) -> str:
    return str(list(getattr(table, name).shape))


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path).hex()}
