"""Dynamic batching: inputs of many requests go through the model together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Prepared = Tensor | dict[str, Tensor]  # of one modality, or by modality of several together
Run = Callable[[str, list[Prepared]], Tensor]


class BusyError(Exception):
    """More inputs wait than may."""


@dataclass(frozen=True)
class Batching:
    """How inputs are joined.

    Attributes:
        max_batch: inputs that go through the model at once, at least 1.
        max_wait_ms: how long the first of a batch waits for others.
        max_waiting: inputs that may wait; beyond, requests are refused (back-pressure).
    """

    max_batch: int = 32
    max_wait_ms: float = 2.0
    max_waiting: int = 1024

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.max_waiting < 1 or self.max_wait_ms < 0:
            raise ValueError(
                f"expected max_batch and max_waiting from 1, max_wait_ms from 0: {self}"
            )


@dataclass
class _Waiting:
    modality: str
    inputs: Prepared
    since: float
    done: Future[Tensor] = field(default_factory=Future)


class Batcher:
    """One thread that runs the model; anyone may hand it inputs.

    Args:
        run: called with a modality and a list of its inputs, returns rows ``[B, D]``.
        batching: how inputs are joined.
        note: called with the modality and size of every batch.
    """

    def __init__(
        self, run: Run, batching: Batching, note: Callable[[str, int], None] = lambda *_: None
    ) -> None:
        self.run, self.batching, self.note = run, batching, note
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="batcher")
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, modality: str, inputs: Sequence[Prepared]) -> list[Future[Tensor]]:
        """Futures of the rows ``[D]`` of prepared inputs.

        Raises:
            BusyError: if they would be more than may wait; none of them is taken then.
        """
        now = time.monotonic()
        entries = [_Waiting(modality, each, now) for each in inputs]
        with self._changed:
            if self._closed or len(self._waiting) + len(entries) > self.batching.max_waiting:
                raise BusyError(f"{len(self._waiting)} inputs are waiting")
            self._waiting.extend(entries)
            self._changed.notify()
        return [entry.done for entry in entries]

    def close(self) -> None:
        """Ends the thread; what waits is refused."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            self.note(batch[0].modality, len(batch))
            self._finish(batch)

    def _next(self) -> list[_Waiting] | None:
        """The oldest input and others of its modality; None at the end."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                for entry in self._waiting:
                    entry.done.set_exception(BusyError("the service ends"))
                self._waiting.clear()
                return None
            first = self._waiting[0]
            until = first.since + self.batching.max_wait_ms / 1000
            while len(self._waiting) < self.batching.max_batch and not self._closed:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            own = [each for each in self._waiting if each.modality == first.modality]
            batch = own[: self.batching.max_batch]
            taken = set(map(id, batch))
            self._waiting = deque(each for each in self._waiting if id(each) not in taken)
        return batch

    def _finish(self, batch: list[_Waiting]) -> None:
        live = [each for each in batch if each.done.set_running_or_notify_cancel()]
        if not live:
            return
        try:
            rows: Any = self.run(live[0].modality, [each.inputs for each in live])
        except Exception as error:  # of one input, a tower may raise anything
            if len(live) == 1:
                live[0].done.set_exception(error)
                return
            for each in live:  # the others of the batch have no part in it
                self._one(each)
            return
        for each, row in zip(live, rows, strict=True):
            each.done.set_result(row)

    def _one(self, each: _Waiting) -> None:
        try:
            each.done.set_result(self.run(each.modality, [each.inputs])[0])
        except Exception as error:
            each.done.set_exception(error)
