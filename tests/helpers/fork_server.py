"""The server of `forked_programs`: it forks a process for each program it is asked to run.

Nothing here starts a thread or computes: only what was imported is there in a fork.
"""

import gc
import json
import os
import runpy
import signal
import socket
import sys

import multimodal.cli.main
from multimodal.core.process.lean_imports import import_lightning

import_lightning()

import PIL.Image  # noqa: E402
import webdataset  # noqa: E402, F401

import multimodal.cli.train  # noqa: E402
import multimodal.evaluation  # noqa: E402
import multimodal.training  # noqa: E402, F401


def serve(connection: socket.socket) -> dict | None:
    """Answers until the other side has gone. In a new process, returns what that is to run."""
    with connection, connection.makefile("rw") as file:
        for line in file:
            question = json.loads(line)
            if "pid" in question:
                answer = _status(question["pid"])
            else:
                answer = os.fork()
                if answer == 0:
                    return question
            file.write(json.dumps(answer) + "\n")
            file.flush()
    return None


def _status(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def run(words: list[str], env: dict[str, str], cwd: str, stdout: str, stderr: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, HANDLERS[number])
    out = os.open(stdout, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND, 0o644)
    err = out if stderr == stdout else os.open(
        stderr, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND, 0o644
    )  # fmt: skip
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv[:] = words
    added = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    beside = cwd if words[0] == "-m" else os.path.dirname(words[0])
    sys.path[:] = [beside, *added, *sys.path[1:]]
    if words[0] == "-m":
        sys.argv[:] = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


PIL.Image.init()  # imports its formats
HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 50)  # as in conftest.py
asked = serve(socket.socket(fileno=int(sys.argv[1])))
if asked is not None:
    run(**asked)
