"""Loading processes are forked, again where one comes to the world locked; their sockets fit."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import tempfile
from multiprocessing.connection import wait
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen
from multiprocessing.queues import Queue
from multiprocessing.util import Finalize
from typing import Any

from torch._utils import ExceptionWrapper

log = logging.getLogger(__name__)

_LIMIT_S = 20.0  # for the first line of Python in a new process, on a busy machine too
_ATTEMPTS = 5
_LONGEST_SOCKET = 107  # bytes of a socket's path on Linux: sun_path of unix(7), less its last 0
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


class ForkedProcess(ForkProcess):
    """A forked process that has reached Python when `start` returns.

    A thread of C++ that calls Python, such as one of gloo's that lets go of a tensor, may hold a
    lock of the interpreter at the moment of the fork; the new process then waits for ever for a
    thread that it does not have (CPython 3.11 takes the lock before it makes it new). Such a
    process has done nothing yet: it is killed, and another one is forked.

    Raises:
        RuntimeError: if five in a row do not start within 20 s each.
    """

    _began: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        make_folder_of_sockets()  # inherited by the new process
        super().__init__(*args, **kwargs)

    @staticmethod
    def _Popen(process_obj: Any) -> Popen:
        for attempt in range(1, _ATTEMPTS + 1):
            reader, process_obj._began = os.pipe()
            try:
                popen = Popen(process_obj)
                os.close(process_obj._began)
                if wait([reader], _LIMIT_S):  # any number of open files, unlike `select`
                    return popen
            finally:
                os.close(reader)
            popen.kill()
            popen.wait()
            log.warning(
                "a loading process did not start within %g s; started again (%d of %d)",
                _LIMIT_S, attempt, _ATTEMPTS,
            )  # fmt: skip
        raise RuntimeError(
            f"no loading process started in {_ATTEMPTS} attempts of {_LIMIT_S:g} s: the machine "
            "is overloaded; set data.num_workers=0 to load without processes"
        )

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        os.write(self._began, b".")  # what the parent waits for
        os.close(self._began)
        return super()._bootstrap(parent_sentinel)  # type: ignore[misc, no-any-return]


class _ResultQueue(Queue):  # type: ignore[type-arg]
    """A queue of batches in whose place an error arrives where they cannot be sent.

    Python's own prints the error in the loading process, and its reader waits for ever.
    """

    def _on_queue_feeder_error(self, e: Exception, obj: Any) -> None:
        step, batch = obj if isinstance(obj, tuple) and len(obj) == 2 else (None, None)
        if step is None or isinstance(batch, ExceptionWrapper):
            super()._on_queue_feeder_error(e, obj)  # type: ignore[misc]
            return
        where = "in a loading process, which could not send a batch (data.num_workers=0 needs none)"
        error = ExceptionWrapper((type(e), e, e.__traceback__), where)  # type: ignore[no-untyped-call]
        self.put((step, error))


class _Context(ForkContext):
    Process = ForkedProcess

    def Queue(self, maxsize: int = 0) -> Any:
        return _ResultQueue(maxsize, ctx=self.get_context())


def fork_context() -> ForkContext:
    """What a ``DataLoader`` takes as ``multiprocessing_context``."""
    assert "fork" in multiprocessing.get_all_start_methods()
    return _Context()


def make_folder_of_sockets() -> None:
    """Makes the folder in which loading processes listen for who fetches their batches.

    Workers are killed at the end, and each would leave a folder of its own: with one that this
    process has made they make none, and it is removed at this process's end. A socket's path has
    at most 107 bytes; where ``TMPDIR`` is too long for one, the folder is in a shorter place.

    Raises:
        RuntimeError: if ``TMPDIR`` is too long and no shorter folder can be written.
    """
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    folder = config.get("tempdir")
    if folder is not None and os.path.isdir(folder) and _holds_sockets(folder):
        return
    base = tempfile.gettempdir()
    if not _holds_sockets(f"{base}/pymp-{'x' * 8}"):
        base = next((short for short in _SHORT_FOLDERS if os.access(short, os.W_OK)), "")
        if not base:
            raise RuntimeError(
                f"the temporary folder {tempfile.gettempdir()} has too long a path for the sockets "
                "of loading processes (at most 75 bytes); set TMPDIR to a shorter one, or "
                "data.num_workers=0 to load without processes"
            )
    config["tempdir"] = made = tempfile.mkdtemp(prefix="pymp-", dir=base)
    # Python's own end of such a folder prints an error where it has been tidied away.
    Finalize(None, shutil.rmtree, (made,), {"ignore_errors": True}, exitpriority=-100)


def _holds_sockets(folder: str) -> bool:
    return len(os.fsencode(f"{folder}/listener-{'x' * 8}")) <= _LONGEST_SOCKET
