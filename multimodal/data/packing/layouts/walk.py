"""The files of a folder, through its links, each once; skipped ones are refusals."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from multimodal.data.packing.items import Refusal

# Left behind by systems and programs.
_RUBBISH = ("thumbs.db", "desktop.ini", "__macosx")


class Found(NamedTuple):
    """A file of a folder.

    Attributes:
        name: its path in the folder, parted by ``/``.
        path: where it is.
        size: its bytes.
    """

    name: str
    path: Path
    size: int


def walk(folder: Path) -> Iterator[Found | Refusal]:
    """All files below a folder, by name.

    Hidden files, links that lead nowhere or back, and entries that are neither files nor folders
    are refusals.
    """
    yield from _walk(folder, "", {_identity(folder.stat())})


def _walk(folder: Path, prefix: str, above: set[tuple[int, int]]) -> Iterator[Found | Refusal]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Refusal(
            prefix.rstrip("/") or str(folder), "unreadable", f"{folder}: {error.strerror}"
        )
        return
    for entry in entries:
        name = f"{prefix}{entry.name}"
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name.lower() in _RUBBISH:
            yield Refusal(name, "hidden", f"{name} is a hidden file or one of the system's")
            continue
        try:
            status = entry.stat()
        except OSError as error:
            link = entry.is_symlink()
            detail = f"{path} is a link to {os.readlink(path)}: " if link else f"{path}: "
            yield Refusal(
                name, "broken_link" if link else "unreadable", detail + str(error.strerror)
            )
            continue
        if stat.S_ISREG(status.st_mode):
            yield Found(name, path, status.st_size)
        elif not stat.S_ISDIR(status.st_mode):
            yield Refusal(name, "unreadable", f"{path} is neither a file nor a folder")
        elif (identity := _identity(status)) in above:
            yield Refusal(name, "link_loop", f"{path} leads back to a folder that it is in")
        else:
            yield from _walk(path, f"{name}/", above | {identity})


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
