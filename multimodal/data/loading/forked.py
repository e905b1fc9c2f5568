"""Loading processes are forked, and forked again where one comes to the world locked."""

from __future__ import annotations

import logging
import multiprocessing
import os
from multiprocessing.connection import wait
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen
from multiprocessing.util import get_temp_dir
from typing import Any

log = logging.getLogger(__name__)

_LIMIT_S = 20.0  # for the first line of Python in a new process, on a busy machine too
_ATTEMPTS = 5


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


class _Context(ForkContext):
    Process = ForkedProcess


def fork_context() -> ForkContext:
    """What a ``DataLoader`` takes as ``multiprocessing_context``."""
    assert "fork" in multiprocessing.get_all_start_methods()
    # Workers are killed at the end, and would leave their folders of sockets: with one that this
    # process has made they make none, and it is removed at this process's end.
    get_temp_dir()
    return _Context()
