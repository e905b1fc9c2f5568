"""A shard table as columns: arrays in memory, or files that are mapped and never copied."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("names", "samples", "bytes", "sha256", "starts")


class MappedColumn(np.memmap):
    """An array file mapped to memory; to other processes it travels as its path."""

    path: Path | None = None

    def __reduce__(self) -> Any:
        if self.path is None:  # a part, or the result of a calculation
            return np.asarray(self).__reduce__()
        return open_column, (self.path,)


def open_column(path: Path) -> MappedColumn:
    """Maps an ``.npy`` file, whose content is read as it is looked at."""
    column: MappedColumn = np.load(path, mmap_mode="r").view(MappedColumn)
    column.path = path
    return column


class ShardRow(NamedTuple):
    """One shard of a table."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardTable:
    """The shards of one split, as columns of length S, so that millions of them stay small.

    Attributes:
        names: UTF-8 bytes, relative to the manifest's folder.
        samples: int64, samples in each shard.
        bytes: int64, size of each shard's file.
        sha256: ``[S, 32]`` uint8.
        starts: ``[S + 1]`` int64, index of each shard's first sample, then the number of samples.
    """

    names: NDArray[np.bytes_]
    samples: NDArray[np.int64]
    bytes: NDArray[np.int64]
    sha256: NDArray[np.uint8]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, shards: Iterable[ShardRow]) -> ShardTable:
        """The table of validated rows."""
        names, samples, sizes, digests = zip(*shards, strict=True)
        counts = np.array(samples, np.int64)
        sha256 = np.frombuffer(b"".join(map(bytes.fromhex, digests)), np.uint8)
        return cls(
            names=np.array([name.encode() for name in names]),
            samples=counts,
            bytes=np.array(sizes, np.int64),
            sha256=sha256.reshape(len(counts), 32),
            starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        )

    @classmethod
    def joined(cls, tables: Sequence[ShardTable]) -> ShardTable:
        """The shards of several tables, one after the other."""
        if len(tables) == 1:
            return tables[0]
        samples = np.concatenate([table.samples for table in tables])
        return cls(
            names=np.concatenate([table.names for table in tables]),
            samples=samples,
            bytes=np.concatenate([table.bytes for table in tables]),
            sha256=np.concatenate([table.sha256 for table in tables]),
            starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(samples)]),
        )

    def save(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Writes a file for each column, and returns what a manifest says of them."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in COLUMNS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        return {name: _entry(folder / f"{name}.npy") for name in COLUMNS}

    @classmethod
    def mapped(cls, folder: Path, columns: dict[str, dict[str, Any]]) -> ShardTable:
        """The table in ``folder``, mapped.

        Raises:
            ValueError: if a file is not the one that the manifest speaks of, or the columns do not
                fit each other.
        """
        for name in COLUMNS:
            path = folder / f"{name}.npy"
            if not path.is_file() or _entry(path) != columns.get(name):
                raise ValueError(f"{path} is missing, or is not the one that the manifest names")
        table = cls(*(open_column(folder / f"{name}.npy") for name in COLUMNS))
        shards = len(table)
        lengths = {len(table.names), len(table.bytes), len(table.sha256), len(table.starts) - 1}
        if shards < 1 or lengths != {shards} or table.sha256.shape != (shards, 32):
            raise ValueError(f"the columns in {folder} are of different lengths, or empty")
        counts = np.diff(table.starts)
        if table.starts[0] or counts.min() < 1 or not np.array_equal(counts, table.samples):
            raise ValueError(f"starts and samples in {folder} do not fit each other")
        return table

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def num_samples(self) -> int:
        """Samples in all shards together."""
        return int(self.starts[-1])

    def name(self, shard: int) -> str:
        """File name of a shard, relative to the manifest's folder.

        Raises:
            ValueError: if it would lead out of there.
        """
        name = bytes(self.names[shard]).decode()
        if not is_inside(name):
            raise ValueError(f"the shard's name {name!r} leads out of the manifest's folder")
        return name

    def locate(self, index: int) -> tuple[int, int]:
        """The shard that holds sample ``index``, and the sample's place in it.

        Raises:
            IndexError: if ``index`` is not in [0, num_samples).
        """
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return shard, index - int(self.starts[shard])


def is_inside(name: str) -> bool:
    """Whether a relative path stays in its folder, on any system."""
    return not (name.startswith("/") or ".." in name.split("/") or set(name) & set(":\\\0"))


def _entry(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
