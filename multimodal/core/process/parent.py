"""Processes that this one starts do not outlive it, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

# Names the process that started this one: HOST:PID. In the environment of ranks and anchors.
PARENT = "MULTIMODAL_PARENT"
GRACE_S = 60.0  # to save a checkpoint

_CHECK_S = 0.5
_PR_SET_PDEATHSIG = 1  # of Linux' prctl.h


def end_with_parent(parent: int, grace_s: float = 0.0) -> threading.Event:
    """From now on this process ends when ``parent`` is not its parent any more.

    A process that is killed cannot end its children, so they look after it. One that is stopped
    (SIGSTOP) is continued by the system when its parent dies, where that is Linux.

    Args:
        parent: the process that has started this one.
        grace_s: seconds from SIGTERM, which this process sends itself, to its end by force; 0 ends
            it at once.

    Returns:
        An event that ends the watch when it is set.
    """
    over = threading.Event()
    if sys.platform == "linux":  # of no effect on one that runs, as when only a thread has ended
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT))
    if os.getppid() != parent and not grace_s:
        os._exit(1)
    threading.Thread(
        target=_watch, args=(parent, grace_s, over), name="parent", daemon=True
    ).start()
    return over


def _watch(parent: int, grace_s: float, over: threading.Event) -> None:
    while os.getppid() == parent:
        if over.wait(_CHECK_S):
            return
    if grace_s:
        os.kill(os.getpid(), signal.SIGTERM)
        if over.wait(grace_s):
            return
    kill_workers()
    os._exit(1)


def end_with_pool() -> None:
    """Ends a process of `multiprocessing` with the one that has started it; for its first line."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with_parent(parent.pid)


def parent_of_children() -> dict[str, str]:
    """The variable by which processes that are started with it know this one."""
    return {PARENT: f"{socket.gethostname()}:{os.getpid()}"}


@contextlib.contextmanager
def ended_with_starter() -> Iterator[None]:
    """Within, this process ends with that of ours, or of torchrun, which has started it.

    It gets SIGTERM, as if a user had sent it: a training saves a checkpoint. One that was started
    in another way stays as it is.
    """
    parent = _starter()
    over = None if parent is None else end_with_parent(parent, GRACE_S)
    try:
        yield
    finally:
        if over is not None:
            over.set()


def _starter() -> int | None:
    host, _, pid = os.environ.get(PARENT, "").rpartition(":")
    named = int(pid) if host == socket.gethostname() and pid.isdigit() else None
    # It may have died before this line, and between the two may stand a shell of the user's.
    if named is not None and (os.getppid() == named or not _exists(named)):
        return named
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def lives_in_worker_of(starter: int) -> bool:
    """Whether this is one of the processes in which joblib runs the jobs of ``starter``'s sweep."""
    own = type(multiprocessing.current_process()).__module__
    return os.getpid() != starter and own.startswith("joblib.externals.loky.")


def kill_workers() -> None:
    """Ends the loading processes of all loaders; for the end of this process, from any thread."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
