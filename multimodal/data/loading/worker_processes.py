"""The processes of a loader: their faults are seen while a batch is awaited, their end is sure."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import threading
import time
import weakref
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from torch._C import _error_if_any_worker_fails, _remove_worker_pids, _set_worker_pids
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import (
    _BaseDataLoaderIter,
    _MultiProcessingDataLoaderIter,
    _SingleProcessDataLoaderIter,
)

from multimodal.core.process.exits import skip_last_collection
from multimodal.core.process.parent import kill_workers

Item = TypeVar("Item")

_CHECK_S = 1.0  # between looks at whether the workers live
_PATIENCE_S = 2.0  # for a killed process, or a thread, to be gone
_ALIVE: weakref.WeakSet[WorkerIterator] = weakref.WeakSet()


class WorkerLoader(DataLoader[Item]):
    """A ``DataLoader`` whose processes can neither outlive their use nor disturb what follows."""

    def _get_iterator(self) -> _BaseDataLoaderIter:
        if self.num_workers == 0:
            return _SingleProcessDataLoaderIter(self)
        self.check_worker_number_rationality()
        return WorkerIterator(self)


class WorkerIterator(_MultiProcessingDataLoaderIter):
    """Torch's iterator with another end, and with errors only where they can be handled.

    Torch's SIGCHLD handler raises in whatever Python runs when a worker dies: a clean-up loop, an
    exit handler, the saving of a checkpoint. Here the handler knows the workers only while a batch
    is awaited. Torch ends its workers by asking, waits five seconds for each, and then sends
    SIGTERM, which ours ignore. Here they are killed: what they prepare is not wanted any more.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._owner = os.getpid()
        self._awaited_since: float | None = None
        self._gave_up = False
        _ALIVE.add(self)
        super().__init__(loader)
        self._hide_from_handler()
        if self._timeout > 0:
            watch = threading.Thread(target=_watch, args=(weakref.ref(self),), daemon=True)
            watch.start()

    def _get_data(self) -> Any:
        if not self._worker_pids_set:
            _set_worker_pids(id(self), tuple(worker.pid or 0 for worker in self._workers))
            self._worker_pids_set = True
        self._awaited_since = time.monotonic()
        try:
            _error_if_any_worker_fails()  # one may have died since the last batch
            return super()._get_data()  # type: ignore[no-untyped-call]
        except (RuntimeError, OSError, EOFError) as error:
            if self._gave_up:
                raise RuntimeError(f"DataLoader timed out after {self._timeout} seconds") from error
            raise
        finally:
            self._awaited_since = None
            self._hide_from_handler()

    def _give_up_late(self) -> None:
        """Kills the workers if a batch is overdue; the error is raised by who awaits it.

        Torch's own limit is on a message from a worker. The tensors of one that has come are
        fetched from the worker, without a limit.
        """
        since = self._awaited_since
        if since is not None and time.monotonic() > since + self._timeout + _CHECK_S:
            self._gave_up = True
            for worker in self._workers:
                worker.kill()

    def _try_get_data(self, timeout: float = _CHECK_S) -> tuple[bool, Any]:
        # Lightning puts back the signal handlers of before a fit, and torch sets its own only once:
        # after a first training the handler may be gone. So dead workers are looked for as well.
        end = time.monotonic() + timeout
        while True:
            left = end - time.monotonic()
            ready, data = super()._try_get_data(min(_CHECK_S, max(0.0, left)))  # type: ignore[no-untyped-call]
            if ready or left <= _CHECK_S:
                return ready, data

    def _hide_from_handler(self) -> None:
        if self._worker_pids_set:
            _remove_worker_pids(id(self))
            self._worker_pids_set = False

    def _shutdown_workers(self) -> None:
        # Torch calls it when an iteration ends, when nobody holds the iterator any more, and at the
        # exit of Python, when the names of modules may be gone: then `_shutdown` is set. In a
        # forked process the iterator is a copy of another one's.
        if getattr(self, "_shutdown", True) or os.getpid() != self._owner:
            return
        self._shutdown = True
        self._hide_from_handler()
        if hasattr(self, "_pin_memory_thread"):  # reads what a killed process may leave half-sent
            self._pin_memory_thread_done_event.set()
            self._worker_result_queue.put((None, None))
            self._pin_memory_thread.join(_PATIENCE_S)
        kill(self._workers)
        for queue in (self._worker_result_queue, *self._index_queues):
            queue.cancel_join_thread()
            queue.close()


def _watch(reference: weakref.ref[WorkerIterator]) -> None:
    while True:
        time.sleep(_CHECK_S)
        iterator = reference()
        if iterator is None or iterator._shutdown or iterator._gave_up:
            return
        iterator._give_up_late()
        del iterator


def kill(processes: Iterable[BaseProcess]) -> None:
    """Ends ``processes``: all are killed before any is waited for."""
    processes = list(processes)
    for process in processes:
        process.kill()
    end = time.monotonic() + _PATIENCE_S
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))


def _end_soon() -> None:
    # At its exit Python sends SIGTERM to the processes that it has started, which ours ignore, and
    # then waits for them for ever.
    if multiprocessing.active_children():
        kill_workers()
        skip_last_collection()
    for iterator in _ALIVE:
        iterator._shutdown = True


atexit.register(_end_soon)
