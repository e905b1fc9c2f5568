"""Folders of Parquet and Arrow files: what `datasets` saves on disk, and what its hub holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from multimodal.data.packing.tables.columnar import read_arrow
from multimodal.data.packing.tables.open_table import open_table, table_suffix
from multimodal.data.packing.tables.reading import Reading, Table
from multimodal.data.packing.tables.splits import split_in_name, split_named

_STATE, _DICT = "state.json", "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    """Whether `datasets` has saved a data set, or several splits of one, in this folder."""
    return (folder / _STATE).is_file() or (folder / _DICT).is_file()


def saved_tables(folder: Path) -> list[Table]:
    """The tables of a folder that `datasets` has saved.

    Raises:
        ValueError: if a file that it names is not there, or cannot be read.
    """
    if not (folder / _DICT).is_file():
        return _tables(folder, None)
    splits = _read(folder / _DICT).get("splits")
    if not isinstance(splits, list) or not splits:
        raise ValueError(f"{folder / _DICT} names no splits")
    return [
        table for split in splits for table in _tables(folder / str(split), split_named(str(split)))
    ]


def tables_of(paths: Sequence[Path], folder: Path, reading: Reading) -> list[Table]:
    """Tables of one kind, by name; their splits are in their names or folders.

    Raises:
        ValueError: if they are of several kinds, or their columns differ.
    """
    kinds = sorted({table_suffix(path) for path in paths})
    if len(kinds) > 1:
        raise ValueError(f"{folder} holds tables of several kinds ({', '.join(kinds)}): name one")
    tables: list[Table] = []
    for path in sorted(paths):
        table = open_table(path, reading)
        if tables and set(table.columns) != set(tables[0].columns):
            raise ValueError(
                f"{path} has the columns {', '.join(table.columns)}, and {tables[0].path} has "
                f"{', '.join(tables[0].columns)}: name one of them"
            )
        tables.append(replace(table, split=_split_of(path, folder)))
    named = {table.split for table in tables}
    return tables if len(named) > 1 else [replace(table, split=None) for table in tables]


def _split_of(path: Path, folder: Path) -> str:
    above = [split_named(part) for part in path.relative_to(folder).parts[:-1]]
    return next((split for split in above if split), None) or split_in_name(path.stem)


def _tables(folder: Path, split: str | None) -> list[Table]:
    entries = _read(folder / _STATE).get("_data_files")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{folder / _STATE} names no files of data")
    tables = []
    for entry in entries:
        name = str(entry.get("filename")) if isinstance(entry, dict) else str(entry)
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ValueError(f"{folder / _STATE} names {name!r}, which is not in {folder}")
        tables.append(replace(read_arrow(path), split=split))
    return tables


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object")
    return content
