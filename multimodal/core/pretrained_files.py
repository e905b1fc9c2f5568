"""Where the files of pretrained towers lie: one folder for all runs, ``pretrained://NAME/FILE``."""

from __future__ import annotations

import os
from pathlib import Path

from multimodal.core.errors import UserError

PREFIX = "pretrained://"
VARIABLE = "MULTIMODAL_PRETRAINED"
DEFAULT = "~/.cache/multimodal/pretrained"


class NotFetchedError(UserError, FileNotFoundError):
    """A file of a pretrained tower that is not in the folder."""


def folder() -> Path:
    """Of all pretrained towers: ``$MULTIMODAL_PRETRAINED``, or `DEFAULT`."""
    return Path(os.environ.get(VARIABLE) or DEFAULT).expanduser()


def file_of(path: str) -> Path:
    """The local path of ``pretrained://NAME/FILE``.

    Raises:
        ValueError: if it leads out of the folder.
        NotFetchedError: if there is no such file; says how to fetch it.
    """
    inside = path.removeprefix(PREFIX)
    root = folder().resolve()
    target = (root / inside).resolve()
    if "\0" in inside or target == root or not target.is_relative_to(root):
        raise ValueError(f"{path!r} leads out of the folder of pretrained towers")
    if not target.is_file():
        name = inside.partition("/")[0]
        raise NotFetchedError(
            f"{path} is not in {root}: fetch it by `python scripts/pretrained.py fetch {name}`, or "
            f"set {VARIABLE} to the folder where it is"
        )
    return target
