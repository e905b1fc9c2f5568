"""Work that never ends, of which each process leaves a note; without torch, as it is slow."""

from __future__ import annotations

import os
import time
from pathlib import Path


def sleep_for_ever(folder: str) -> None:
    note(folder)
    while True:
        time.sleep(1000)


def note(folder: str) -> None:
    Path(folder, f"pid_{os.getpid()}").touch()


def work(job: tuple[str, bool]) -> None:
    folder, for_ever = job
    (sleep_for_ever if for_ever else note)(folder)


class Sleeping:
    """Samples that are never ready."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __getitem__(self, index: int) -> None:
        sleep_for_ever(self.folder)
