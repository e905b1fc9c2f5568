"""Fields of objects in a table's rows as columns of their own: ``meta.caption``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from multimodal.data.packing.tables.columnar import Embedded
from multimodal.data.packing.tables.named_files import is_file_name
from multimodal.data.packing.tables.reading import BrokenRow, Reading, Row, Table
from multimodal.data.packing.tables.roles import first_rows
from multimodal.data.packing.tables.values import is_caption_name
from multimodal.data.shards.formats import is_media_name

_TRIED = 50  # rows whose objects are looked into
_DEPTH = 4  # of objects in objects


def with_fields(table: Table, reading: Reading) -> Table:
    """The table with those fields of its objects as columns that are files or texts.

    They are the ones that the user names, else captions by their names and files by their
    extensions, where no column of the table itself holds any. The objects stay metadata.
    """
    rows = first_rows(table, _TRIED)
    fields: dict[str, list[Any]] = {}
    for values in rows:
        for name, value in _leaves(values):
            fields.setdefault(name, []).append(value)
    fields = {name: held for name, held in fields.items() if name not in table.columns}
    chosen = [name for name in reading.named_columns if name in fields]
    if not (reading.texts or reading.optional or any(map(is_caption_name, table.columns))):
        named = (name for name in fields if is_caption_name(name.rpartition(".")[2]))
        chosen += islice((name for name in named if _are_texts(fields[name])), 1)
    if not (reading.files or any(_holds_files(rows, column) for column in table.columns)):
        chosen += [name for name, held in fields.items() if all(map(_is_media, held))]
    if not chosen:
        return table

    def extended() -> Iterator[Row | BrokenRow]:
        for row in table.rows():
            if isinstance(row, Row):
                more = {name: _at(row.values, name) for name in chosen}
                row = row._replace(values={**row.values, **more})
            yield row

    return replace(table, columns=[*table.columns, *dict.fromkeys(chosen)], rows=extended)


def _leaves(values: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every field of the objects in a row, nulls left out."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and depth < _DEPTH:
            yield from _leaves(value, f"{name}.", depth + 1)
        elif prefix and value is not None:
            yield name, value


def _at(values: Any, name: str) -> Any:
    """The value at a dotted name, of which the first parts may hold dots themselves."""
    if not isinstance(values, dict):
        return None
    if name in values:
        return values[name]
    for key in values:
        if name.startswith(f"{key}.") and isinstance(values[key], dict):
            return _at(values[key], name[len(key) + 1 :])
    return None


def _are_texts(values: Sequence[Any]) -> bool:
    flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return bool(flat) and all(isinstance(each, str) for each in flat)


def _is_media(value: Any) -> bool:
    return isinstance(value, str) and is_media_name(value.strip())


def _holds_files(rows: Sequence[dict[str, Any]], column: str) -> bool:
    values = [value for row in rows if (value := row.get(column)) is not None]
    flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
    if any(isinstance(each, Embedded) or _is_media(each) for each in flat):
        return True
    return is_file_name(column) and all(isinstance(each, str) for each in flat) and bool(flat)
