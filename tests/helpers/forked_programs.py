"""Programs of ours in processes forked from one that has imported what a training imports.

To import that takes longer than all else in most tests that start one. A program begins and ends as
any other: with its own arguments, environment, output and folder, and with Python's own exit.
Tests of how a process starts or ends give ``subprocess`` its place.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).with_name("fork_server.py")


class Forked:
    """A program that was started, as `subprocess.Popen` has it."""

    def __init__(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        stdout: Path,
        stderr: Path | None = None,
    ) -> None:
        """``words``: a script, or ``-m`` and a module; ``stderr``: by default ``stdout``."""
        self.args = list(words)
        self.returncode: int | None = None
        self.pid: int = _ask(
            words=self.args,
            env=dict(env),
            cwd=str(cwd),
            stdout=str(stdout),
            stderr=str(stderr or stdout),
        )

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask(pid=self.pid)
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # nobody else has its number before it was waited for
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_program(
    words: Sequence[str], env: Mapping[str, str], cwd: Path, folder: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Runs it to its end, as `subprocess.run`; the output passes through files in ``folder``."""
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    program = Forked(words, env, cwd, out, err)
    try:
        status = program.wait(timeout)
    finally:
        program.kill()
    return subprocess.CompletedProcess(program.args, status, out.read_text(), err.read_text())


def _ask(**question: Any) -> Any:
    file = _server()
    file.write(json.dumps(question) + "\n")
    file.flush()
    return json.loads(file.readline())


@functools.cache
def _server() -> TextIO:
    """Starts it once a process; it ends when that has gone."""
    ours, its = socket.socketpair()
    with its:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.Popen(
            [sys.executable, str(SERVER), str(its.fileno())],
            env=env, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    return ours.makefile("rw")
