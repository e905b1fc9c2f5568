"""Processes whose parent ends: small programs, and whether what they have started ends too."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiment_helpers import ROOT

# Killed; asked to end by a scheduler; its terminal closed.
ENDS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
LIMIT = 120.0  # a machine may be busy


def wait_until(condition: Callable[[], object], seconds: float = LIMIT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


def handle_of(pid: int) -> int:
    """A handle of a process, which tells its end even where nobody collects its status."""
    return os.pidfd_open(pid)


def ends(handle: int, seconds: float = LIMIT) -> bool:
    """Whether the process ends in time; it is gone afterwards in either case."""
    ended = bool(select.select([handle], [], [], seconds)[0])
    if not ended:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    os.close(handle)
    return ended


def hear_hangups() -> None:
    """In a new process: what `nohup` has the tests ignore ends it as it would a user's."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def started(program: str, *words: str) -> subprocess.Popen[bytes]:
    """A Python program in a process, and a session, of its own."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=hear_hangups,
    )


def pids_in(folder: Path, count: int) -> list[int]:
    """The processes that have noted themselves as files, once there are ``count`` of them."""
    wait_until(lambda: len(list(folder.glob("pid_*"))) >= count)
    return [int(path.name.removeprefix("pid_")) for path in folder.glob("pid_*")]


def end_and_see(parent: subprocess.Popen[bytes], pids: Sequence[int], number: int) -> list[bool]:
    """Sends the parent its signal, and says of each process whether it has ended."""
    handles = [handle_of(pid) for pid in pids]
    parent.send_signal(number)
    assert parent.wait(LIMIT) == -number
    return [ends(handle) for handle in handles]
