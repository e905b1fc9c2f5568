"""What the original layouts have in common: tables, and files by their names."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from multimodal.data.packing.contents import InFile
from multimodal.data.packing.items import Item, Refusal
from multimodal.data.shards.formats import extension_of

Samples = Iterator[Item | Refusal]


class LayoutError(ValueError):
    """A folder that does not hold a benchmark as it is published."""


def needed(folder: Path, *names: str) -> Path:
    """The first of the files or folders that is there.

    Raises:
        LayoutError: if none is.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise LayoutError(f"{folder} has no {' or '.join(names)}: expected the layout as published")


def table(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, str]]:
    """The rows of a CSV file.

    Args:
        path: of the file.
        columns: where it has no header; rows may have fewer.

    Raises:
        LayoutError: if a row is longer or shorter than the header.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, columns, skipinitialspace=True))
    for number, row in enumerate(rows, 1 if columns else 2):
        if None in row or (columns is None and None in row.values()):
            raise LayoutError(f"{path}, row {number}: as many cells as columns were expected")
    return rows


def lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without the spaces around them.

    Raises:
        LayoutError: if it is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LayoutError(f"{path} is not UTF-8: {error}") from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def document(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        LayoutError: if it is none.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise LayoutError(f"{path} is not JSON: {error}") from error


def by_stem(folder: Path, *extensions: str) -> dict[str, Path]:
    """The files below a folder with these extensions, by their names without them."""
    paths = sorted(path for path in folder.rglob("*") if extension_of(path.name) in extensions)
    return {path.stem: path for path in paths}


def in_file(path: Path) -> InFile:
    """A file's content."""
    return InFile(path, path.stat().st_size)


def sample(
    name: str, member: str, path: Path, metadata: dict[str, Any], texts: tuple[str, ...] = ()
) -> Item | Refusal:
    """A sample of one file, in the split ``test``; refused where there is no such file.

    Args:
        name: of the sample.
        member: its field (``image.jpg``), equal for all samples; what a file really is, its bytes
            say.
        path: of the file.
        metadata: of the sample.
        texts: keys of it that must hold texts.
    """
    if not path.is_file():
        return Refusal(name, "no_file", f"there is no file {path}")
    return Item(name, {member: in_file(path)}, metadata, "test", texts)
