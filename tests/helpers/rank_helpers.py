"""Runs of several ranks whose processes the test itself holds, as torchrun would start them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiment_helpers import OWN_CONFIGS, ROOT
from forked_programs import Forked

FAST = ("~evaluation", "trainer.log_every_n_steps=1", "callbacks.progress=null")


class Ranks:
    """The processes of one run; as a context they are gone at its end."""

    def __init__(
        self, words: Sequence[str], folder: Path, shards: Path, world_size: int = 2, **env: str
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        port = free_port()
        command = [str(ROOT / "scripts" / "train.py")]
        command += ["--config-dir", str(OWN_CONFIGS), "+experiment=sensor", *FAST]
        command += ["allowed_packages=[fault_callbacks]", f"hydra.run.dir={folder}"]
        if world_size > 1:
            if not any(word.startswith("trainer=") for word in words):
                command += ["trainer=ddp"]
            command += ["trainer.accelerator=cpu", f"trainer.devices={world_size}"]
            command += ["trainer.precision=32-true"]
        command += words
        self.processes = []
        self.outputs = [folder / f"output_{rank}.txt" for rank in range(world_size)]
        for rank, output in enumerate(self.outputs):
            environment = {
                **os.environ, "OMP_NUM_THREADS": "1", "SENSOR_SHARDS": str(shards),
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}", **env,
            }  # fmt: skip
            if world_size > 1:
                environment |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                    "LOCAL_WORLD_SIZE": str(world_size), "GROUP_RANK": "0",
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                    "TORCHELASTIC_RUN_ID": "test",
                }  # fmt: skip
            self.processes.append(Forked(command, environment, ROOT, output))

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(120)

    def output(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text()[-4000:]}" for p in self.outputs)

    def wait_until(self, condition: Callable[[], bool], timeout: float = 180.0) -> None:
        end = time.monotonic() + timeout
        while not condition():
            ended = [p.returncode for p in self.processes if p.poll() is not None]
            assert not ended, f"ended early with {ended}: {self.output()}"
            assert time.monotonic() < end, f"not within {timeout} s: {self.output()}"
            time.sleep(0.05)

    def wait_for(self, name: str, timeout: float = 180.0) -> None:
        self.wait_until(lambda: (self.folder / name).exists(), timeout)

    def codes(self, timeout: float) -> list[int]:
        """The exit codes, of which every one has to come in time."""
        end = time.monotonic() + timeout
        try:
            return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s: {self.output()}") from None

    def signal(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank].send_signal(number)


def free_port() -> int:
    """A port that nothing has, and that no outgoing connection gets before it is used.

    Those take one of the range that the system asks a socket of port 0 to take as well.
    """
    numbers = random.SystemRandom()  # each process that runs tests has the same seed
    while True:
        port = numbers.randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def callback(name: str, **options: Any) -> str:
    """The word that adds a callback of `fault_callbacks`."""
    inner = ", ".join(f"{key}: {json.dumps(value)}" for key, value in options.items())
    return f"+callbacks.{name.lower()}={{_target_: fault_callbacks.{name}, {inner}}}"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
