"""A table of any format, by its file's extension."""

from __future__ import annotations

from pathlib import Path

from multimodal.data.packing.tables.columnar import ARROW, read_arrow, read_parquet
from multimodal.data.packing.tables.delimited import read_delimited
from multimodal.data.packing.tables.json_rows import read_json_lines
from multimodal.data.packing.tables.reading import Reading, Table

_DELIMITED = (".csv", ".tsv", ".tab", ".psv")
_JSON_LINES = (".jsonl", ".ndjson")
TABLES = (*_DELIMITED, *_JSON_LINES, ".parquet", *ARROW)


def table_suffix(path: Path) -> str:
    """The extension that says what a table is, ``.gz`` taken off."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


def open_table(path: Path, reading: Reading) -> Table:
    """A table; see the readers of each format.

    Raises:
        ValueError: if it cannot be read, or has no rows.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    suffix = table_suffix(path)
    if suffix == ".parquet":
        return read_parquet(path)
    if suffix in ARROW:
        return read_arrow(path)
    if suffix in _JSON_LINES:
        return read_json_lines(path, reading)
    return read_delimited(path, reading)
