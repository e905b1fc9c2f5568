"""A reusable buffer pool, which avoids the page faults of fresh allocations."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info


class BufferPool:
    """A pool of buffers. A buffer is not handed out again while anything references it.

    Args:
        size: maximum number of pooled buffers.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffers = [np.empty(0, np.uint8)]
        self._unused = self._references(0)

    def _references(self, place: int) -> int:
        return sys.getrefcount(self._buffers[place])

    def take(self, length: int) -> NDArray[np.uint8]:
        """An unused buffer of at least ``length`` bytes."""
        free = [n for n in range(len(self._buffers)) if self._references(n) == self._unused]
        for place in free:
            if length <= len(self._buffers[place]):
                return self._buffers[place]
        if free:
            del self._buffers[free[0]]
        buffer = np.empty(length, np.uint8)
        self._buffers.append(buffer)
        del self._buffers[: -self._size]
        return buffer


_BATCHES = BufferPool(6)


def empty_batch(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor; in a worker, in shared memory."""
    size = int(np.prod(shape)) * dtype.itemsize
    if get_worker_info() is not None:
        storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
        return torch.empty(0, dtype=dtype).set_(storage).view(*shape)
    memory = torch.from_numpy(_BATCHES.take(max(1, size)))
    return memory[:size].view(dtype).view(*shape)
