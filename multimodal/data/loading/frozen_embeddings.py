"""Embeddings of frozen towers on disk: computed once per sample, read from a memory map."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimodal.core.files import written_beside
from multimodal.data.errors import DecodeError

TODO, DONE, BAD = 0, 1, 2


class FrozenEmbeddings:
    """``[n, K, D]`` float32: K views of each of n samples of a source, for one modality.

    Several processes may fill one table, each its own samples, and an incomplete table is
    completed. Pickles as its path.

    Args:
        folder: of the table; ``create`` makes one.
        writable: whether it will be filled.

    Attributes:
        views: K.
    """

    def __init__(self, folder: Path, writable: bool = False) -> None:
        self.folder = folder
        mode: Literal["r", "r+"] = "r+" if writable else "r"
        self._values: NDArray[np.float32] = np.load(folder / "embeddings.npy", mmap_mode=mode)
        self._status: NDArray[np.uint8] = np.load(folder / "status.npy", mmap_mode=mode)
        # The same memory: an index into a map costs five times that into an array.
        self._rows, self._marks = self._values.view(np.ndarray), self._status.view(np.ndarray)
        self.views = int(self._values.shape[1])

    @classmethod
    def create(cls, folder: Path, samples: int, views: int, embed_dim: int) -> None:
        """Makes an empty table, unless there is one already."""
        # The status comes last: where it is, the rest is.
        for name, shape, dtype in (
            ("embeddings", (samples, views, embed_dim), np.float32),
            ("status", (samples,), np.uint8),
        ):
            if not (folder / "status.npy").exists():
                with written_beside(folder / f"{name}.npy") as temporary:
                    np.lib.format.open_memmap(temporary, "w+", dtype, shape).flush()
                    _reserve(temporary)

    def __len__(self) -> int:
        return len(self._status)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def missing(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the samples that are still to be computed."""
        indices = np.asarray(indices, np.int64)
        left: NDArray[np.int64] = indices[self._status[indices] == TODO]
        return left

    @property
    def bad(self) -> int:
        """Samples that could not be embedded."""
        return int((self._status == BAD).sum())

    def write(self, index: int, embeddings: Tensor | None) -> None:
        """Keeps the views ``[K, D]`` of one sample; None if it cannot be read."""
        if embeddings is not None:
            self._values[index] = embeddings.numpy()
        self._status[index] = BAD if embeddings is None else DONE

    def flush(self) -> None:
        """Puts what was written on disk, the values before their marks."""
        for array in (self._values, self._status):
            if isinstance(array, np.memmap):
                array.flush()

    def sums(self) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
        """How many views of samples there are, their sum ``[D]`` and that of their squares."""
        count, shape = 0, self._values.shape[2]
        total, squares = np.zeros(shape), np.zeros(shape)
        done = np.flatnonzero(self._status == DONE)
        for part in np.array_split(done, max(1, len(done) // 256)):
            values = self._values[part].reshape(-1, shape).astype(np.float64)
            count += len(values)
            total += values.sum(axis=0)
            squares += (values**2).sum(axis=0)
        return count, total, squares

    def all_done(self, indices: NDArray[np.int64]) -> bool:
        """Whether all of the samples are embedded, and none is bad."""
        return bool((self._marks[indices] == DONE).all())

    def rows(self, indices: NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        """One view of each of the samples, ``[B, D]``."""
        return torch.from_numpy(self._rows[indices, views])

    def read(self, index: int, view: int) -> Tensor:
        """One view of one sample, ``[D]``.

        Raises:
            DecodeError: if it could not be embedded.
        """
        if self._marks[index] != DONE:
            raise DecodeError("not_embedded", "was bad when the frozen towers' cache was made")
        return torch.from_numpy(self._rows[index, view].copy())


def _reserve(path: Path) -> None:
    """Takes the disk's space for a file: a map that runs out of it would kill the process."""
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
