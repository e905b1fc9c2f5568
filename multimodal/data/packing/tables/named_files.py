"""Columns of a table that are called as if they named files, and do not."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multimodal.data.packing.items import Say
from multimodal.data.shards.formats import is_media_name

_NAMES = frozenset(
    (
        "audio", "audiofile", "audiopath", "depth", "file", "filename", "filepath", "files",
        "image", "imagefile", "imagename", "imagepath", "images", "img", "imgpath", "path", "photo",
        "picture", "sound", "video", "videopath", "wav",
    )
)  # fmt: skip


def is_file_name(column: str) -> bool:
    """Whether a column of this name holds the names of files."""
    return column.lower().replace("_", "").replace("-", "").replace(" ", "") in _NAMES


def note_no_file(table: Path, column: str, values: Sequence[Any], root: Path, say: Say) -> None:
    """Says that a column becomes metadata although it is called as if it named files.

    Args:
        table: its file, for the message.
        column: none of whose values has the extension of a picture, a sound or the like.
        values: of its first rows.
        root: the folder of the files, if there are any.
        say: prints a line.

    Raises:
        ValueError: if there are files of these names, and only the extensions are left out.
    """
    names = [name for value in values if isinstance(value, str) and (name := value.strip())]
    for name in names:
        if (file := _with_extension(root, name)) is not None:
            raise ValueError(
                f"{table}: the column {column!r} says {name!r}, and the file is {file.name!r}: "
                f"write the extensions too; or pack the column as metadata (--optional {column})"
            )
    if names:
        say(f"the column {column!r} is metadata: {names[0]!r} does not name a file of a known kind")


def _with_extension(root: Path, name: str) -> Path | None:
    """The media file of this name and any extension, within ``root``."""
    try:
        folder = (root / name).parent
        if not folder.resolve().is_relative_to(root.resolve()):
            return None
        files = sorted(folder.glob(f"{glob.escape(Path(name).name)}.*"))
    except (OSError, ValueError):  # a text that is not a path
        return None
    return next((file for file in files if is_media_name(file.name)), None)
