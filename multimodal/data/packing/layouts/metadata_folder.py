"""Folders with a table about their files, as `datasets` reads them: ``metadata.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from multimodal.data.packing.contents import InFile
from multimodal.data.packing.items import Item, Refusal, Samples, Say
from multimodal.data.packing.layouts.walk import Found
from multimodal.data.packing.tables.open_table import TABLES, open_table
from multimodal.data.packing.tables.reading import Reading, Table
from multimodal.data.packing.tables.samples import samples_of
from multimodal.data.packing.tables.splits import split_named

_NAME = "metadata"
_COLUMNS = ("file_name", "file_names")


def metadata_files(files: Sequence[Found]) -> list[Found]:
    """The tables of a folder that are named ``metadata`` and name files."""
    return [
        file
        for file in files
        if file.path.suffix.lower() in TABLES and file.path.stem.lower() == _NAME
    ]


def describes(file: Found, reading: Reading) -> bool:
    """Whether such a table has a column of file names."""
    return any(map(is_file_column, open_table(file.path, reading).columns))


def is_file_column(name: str) -> bool:
    """Whether a column of such a table names files."""
    return name in _COLUMNS or name.endswith(tuple(f"_{each}" for each in _COLUMNS))


def metadata_folder(files: Sequence[Found], reading: Reading, say: Say) -> Samples:
    """The samples that the tables of a folder describe; what none of them names is left out.

    Raises:
        ValueError: if a table names no files, or one folder has two.
    """
    used: set[Path] = set()
    described = metadata_files(files)
    folders: dict[Path, Path] = {}
    for file in described:
        if (other := folders.setdefault(file.path.parent, file.path)) != file.path:
            raise ValueError(f"two tables about one folder: {other} and {file.path}; keep one")
    for file in described:
        table = open_table(file.path, reading)
        columns = [column for column in table.columns if is_file_column(column)]
        if not columns:
            raise ValueError(
                f"{file.path} names no files: it has no column 'file_name', but "
                f"{', '.join(table.columns)} (--layout pairs packs the folder without it)"
            )
        prefix = file.name.rpartition("/")[0]
        columns_named = replace(
            reading, files=reading.files or columns, root=reading.root or file.path.parent
        )
        table = replace(table, split=split_named(prefix.rpartition("/")[2]))
        for sample in samples_of([table], columns_named, say, plain_names=True):
            if isinstance(sample, Item):
                used.update(c.path for c in sample.members.values() if isinstance(c, InFile))
            yield _placed(sample, table, columns, prefix)
    tables = {file.path for file in described}
    for file in files:
        if file.path not in used and file.path not in tables:
            yield Refusal(file.name, "not_listed", f"no {_NAME} table names {file.path}")


def _placed(
    sample: Item | Refusal, table: Table, columns: Sequence[str], prefix: str
) -> Item | Refusal:
    """A sample by the name of its first file."""
    if isinstance(sample, Refusal):
        return sample
    first = next((c for c in sample.members.values() if isinstance(c, InFile)), None)
    if first is None:
        return sample
    name = first.path.relative_to(table.path.parent).with_suffix("").as_posix()
    return replace(sample, name=f"{prefix}/{name}".lstrip("/"), key="")
