"""Receives signals even while the main thread waits inside a collective."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class SignalListener:
    """Records the first signal; a second one, or a deadline after the first, ends the process.

    Python runs its handlers in the main thread between two instructions, so not while that one
    waits for other ranks. Here the interpreter's C handler wakes a thread of our own.

    Args:
        grace_s: seconds from the first signal to the end of the process, if nothing ends it before;
            None for no limit.
        before_exit: called before the process is ended at once.

    Attributes:
        received: number of the first signal; 0 before.
    """

    def __init__(self, grace_s: float | None, before_exit: Callable[[], None]) -> None:
        self._grace_s = grace_s
        self._before_exit = before_exit
        self._previous: dict[int, Any] = {}
        self._previous_fd = -1
        self._pid = os.getpid()
        self._reader, self._writer = socket.socketpair()
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._closed = False
        self.received = 0

    def start(self) -> None:
        """Installs the handlers; from the main thread. Idempotent, and replaces handlers set in the
        meantime."""
        for number in SIGNALS:
            present = signal.signal(number, _noop)
            if present is not _noop:
                self._previous.setdefault(number, present)
        if not self._thread.is_alive():
            self._writer.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(
                self._writer.fileno(), warn_on_full_buffer=False
            )
            os.register_at_fork(after_in_child=self._detach_in_child)
            self._thread.start()

    def stop(self) -> None:
        """Restores the previous handlers."""
        if self._closed:
            return
        self._closed = True
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._writer.close()  # ends the thread
        self._thread.join(timeout=5)
        self._reader.close()

    def _detach_in_child(self) -> None:
        # A forked worker shares the socket: its signals are not this process's.
        if not self._closed and os.getpid() != self._pid:
            signal.set_wakeup_fd(-1)

    def _listen(self) -> None:
        deadline: float | None = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._reader.settimeout(left)
            try:
                numbers = self._reader.recv(64)
            except TimeoutError:
                self._end(f"still running after {self._grace_s} s: exiting at once")
            except OSError:
                return
            if not numbers:
                return
            for number in numbers:
                if number not in SIGNALS:
                    continue
                if self.received:
                    self._end("a second signal: exiting at once; the last checkpoint is intact")
                self.received = number
                if self._grace_s is not None:
                    deadline = time.monotonic() + self._grace_s

    def _end(self, reason: str) -> None:
        os.write(2, f"{reason}\n".encode())
        try:
            self._before_exit()
        finally:
            os._exit(exit_code(self.received))


def exit_code(number: int) -> int:
    """130 after Ctrl-C; 143 after the other signals."""
    return 130 if number == signal.SIGINT else 143


def _noop(number: int, frame: FrameType | None) -> None:
    """The handler: the thread does the work, and no call in the main thread fails."""
