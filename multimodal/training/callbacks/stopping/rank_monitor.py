"""Monitors the processes of the other local ranks that Lightning has started."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytorch_lightning as pl
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from multimodal.core.process.parent import kill_workers


class RankMonitor:
    """Ends the run, with the reason, if one of these processes dies; terminates the others.

    It replaces Lightning's observer, which kills this process silently and with a different exit
    code.
    """

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, trainer: pl.Trainer) -> None:
        """Watches what ``trainer`` has started; nothing to do on other ranks or under torchrun."""
        launcher = trainer.strategy.launcher
        if not isinstance(launcher, _SubprocessScriptLauncher) or not launcher.procs:
            return
        self._processes = list(launcher.procs)
        launcher.procs.clear()  # Lightning's observer looks at this list
        self._done.clear()
        self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.wait(0.5):
            for rank, process in enumerate(self._processes, start=1):
                status = process.poll()
                if status and not self._done.wait(5.0):  # this rank may fail of it by itself
                    _report_exit(rank, process.pid, status)
                    self.kill()
                    kill_workers()
                    os._exit(1)

    def release(self) -> None:
        """Stops monitoring: the run is over."""
        self._done.set()

    def shutdown(self, timeout_s: float) -> None:
        """Waits for these processes, reports which died of a signal, and kills the others."""
        self.release()
        limit = time.monotonic() + timeout_s
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, limit - time.monotonic()))
        for rank, process in enumerate(self._processes, start=1):
            status = process.poll()
            if status is not None and status < 0:  # others have reported their own error
                _report_exit(rank, process.pid, status)
        self.kill()

    def kill(self) -> None:
        """Kills these processes, at once."""
        self.release()
        for process in self._processes:
            if process.poll() is None:
                process.kill()


def _report_exit(rank: int, pid: int, status: int) -> None:
    how = f"exit status {status}" if status > 0 else f"signal {-status}"
    sys.stderr.write(
        f"rank {rank} (process {pid}) exited with {how}, so the run ends; resume from its last "
        "checkpoint with resume=auto\n"
    )
    sys.stderr.flush()
