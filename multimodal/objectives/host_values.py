"""Numbers of the device on their way to the host, which is not to wait for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class HostValues:
    """Scalars that are sent to the host now, and read when they have arrived.

    On a GPU the copy is queued behind what was launched before it. Whoever sends first, then
    launches long work, and then reads, waits for none of that work.

    Args:
        values: scalars, on one device.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        joined = torch.stack([value.detach().double() for value in values])
        self._arrived: torch.cuda.Event | None = None
        self._values = joined
        if joined.is_cuda:
            self._values = torch.empty(joined.shape, dtype=joined.dtype, pin_memory=True)
            self._values.copy_(joined, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        self._read: list[float] | None = None

    def read(self) -> list[float]:
        """The numbers, in order."""
        if self._read is None:
            if self._arrived is not None:
                self._arrived.synchronize()
            self._read = self._values.tolist()
        return self._read
