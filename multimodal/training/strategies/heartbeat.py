"""Which ranks are still there: each counts up a number that another one reads."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

_EVERY_S = 1.0
_FIRST_S = 0.05  # until all have been heard of: who stops early is to be named too
_ANSWER_S = 5.0  # for the store to answer
_GRACE_S = 10.0  # for the main thread to end by itself


class Heartbeat:
    """Names a rank that has gone silent, and ends this process where nothing else does.

    A stopped rank (SIGSTOP, a machine that hangs) leaves the others inside a collective. That one
    fails after ``timeout_s``, with an error that does not say who is missing; a thread of our own
    knows it earlier. Rank 0 listens to all ranks, and they to rank 0, which holds the store.

    Args:
        store: of the process group.
        rank: of this process.
        world_size: number of ranks.
        timeout_s: of a collective; silence for longer, and 10 s more, ends the process.
        asked: the signal that has asked for the run's end, after which 10 s of silence suffice; 0
            for none.
        leave: ends the process at once, with the exit status that it is called with; None for that
            of the signal.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world_size: int,
        timeout_s: float,
        asked: Callable[[], int],
        leave: Callable[[int | None], None],
    ) -> None:
        self._store: Any = store.clone()  # another connection: the main thread may hold the first
        self._store.set_timeout(timedelta(seconds=_ANSWER_S))
        self._rank = rank
        self._others = list(range(1, world_size)) if rank == 0 else [0]
        self._timeout_s = timeout_s
        self._asked = asked
        self._leave = leave
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._warned: set[int] = set()
        self._count = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begins; the others may begin later."""
        now = time.monotonic()
        self._heard = dict.fromkeys(self._others, (b"", now))
        with suppress(RuntimeError):  # the thread tries again
            self._beat()
        self._thread.start()

    def stop(self) -> None:
        """The others may end as they like from now on."""
        self._done.set()

    def silent(self, longer_than_s: float = 5.0) -> str | None:
        """Names the ranks that are not heard of; None if there are none."""
        now = time.monotonic()
        ranks = [rank for rank, (_, at) in self._heard.items() if now - at > longer_than_s]
        return " and ".join(self._name(rank) for rank in ranks) or None

    def _name(self, rank: int) -> str:
        beat = self._heard[rank][0].decode()
        return f"rank {rank} ({beat.partition(' ')[2]})" if beat else f"rank {rank}"

    def _run(self) -> None:
        while not self._done.wait(self._interval()):
            self._count += 1
            try:
                self._beat()
                beats = self._listen()
            except RuntimeError:  # the store does not answer
                if self._rank == 0:  # that says nothing about the others
                    continue
                beats = {}
            now = time.monotonic()
            for rank, beat in beats.items():
                if self._heard[rank][0] != beat:
                    self._heard[rank] = (beat, now)
                    self._warned.discard(rank)
            self._judge(now)

    def _interval(self) -> float:
        return _EVERY_S if all(beat for beat, _ in self._heard.values()) else _FIRST_S

    def _beat(self) -> None:
        who = f"process {os.getpid()} on {socket.gethostname()}"
        self._store.set(_key(self._rank), f"{self._count} {who}")

    def _listen(self) -> dict[int, bytes]:
        begun = [
            rank for rank in self._others if self._heard[rank][0] or self._store.check([_key(rank)])
        ]
        beats = self._store.multi_get([_key(rank) for rank in begun]) if begun else []
        return dict(zip(begun, beats, strict=True))

    def _judge(self, now: float) -> None:
        limit = _GRACE_S if self._asked() else self._timeout_s + _GRACE_S
        for rank, (_, at) in self._heard.items():
            silence = now - at
            if silence > limit and not self._done.is_set():
                _say(f"{self._name(rank)} has been silent for {silence:.0f} s: the run ends")
                self._leave(None if self._asked() else 1)
            elif silence > min(20.0, self._timeout_s / 2) and rank not in self._warned:
                self._warned.add(rank)
                _say(
                    f"WARNING: {self._name(rank)} has been silent for {silence:.0f} s: it is "
                    f"stopped, or its machine hangs. The run ends after {self._timeout_s:g} s of "
                    "silence (trainer.strategy.timeout_s)"
                )


def _key(rank: int) -> str:
    return f"multimodal/beat/{rank}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
