"""Parquet and Arrow files, and folders of them that `datasets` has saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from multimodal.core.extras import module_of
from multimodal.data.packing.contents import InTable
from multimodal.data.packing.tables.reading import BrokenRow, Row, Table, check_header
from multimodal.data.parquet import longest_cell, open_parquet

ARROW = (".arrow", ".feather")
# A file in a table of `datasets`; what other writers say beside it, the file says as well.
_STRUCT = {"bytes", "path", "sampling_rate", "height", "width", "format", "mode", "mime_type"}
_BATCH = 1024  # rows read at a time


class Embedded(NamedTuple):
    """A file inside of a table: its path, as far as it has one, and its bytes; one may be None."""

    path: str | None
    content: InTable | None


def read_parquet(path: Path) -> Table:
    """A Parquet file; the bytes in it stay where they are until they are packed.

    Raises:
        MissingExtraError: if pyarrow is not installed.
        ValueError: if it cannot be read, or has no rows.
    """
    arrow = module_of("shards", "pyarrow", "a Parquet table")
    try:
        with open_parquet(path, "shards", "a Parquet table") as file:
            schema, groups = file.schema_arrow, file.num_row_groups
            sizes = [_sizes(file.metadata.row_group(group)) for group in range(groups)]
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error

    def rows() -> Iterator[Row | BrokenRow]:
        number = 0
        try:
            with open_parquet(path, "shards", "a Parquet table") as file:
                for group in range(groups):
                    start = 0
                    for batch in file.iter_batches(_BATCH, row_groups=[group]):
                        place = _Place(path, group, start, sizes[group])
                        for values in _values(batch, place):
                            yield Row(f"row {number}", values, number)
                            number += 1
                        start += batch.num_rows
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}, row {number}: cannot be read: {error}") from error

    return _table(path, schema, rows, "a Parquet file")


def read_arrow(path: Path) -> Table:
    """An Arrow file, of either of its formats; see `read_parquet`."""
    arrow = module_of("shards", "pyarrow", "an Arrow table")
    content = open_arrow(path)

    def rows() -> Iterator[Row | BrokenRow]:
        number = 0
        try:
            for batch in content.to_batches(_BATCH):
                for values in _values(batch, _Place(path, 0, number, {})):
                    yield Row(f"row {number}", values, number)
                    number += 1
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}, row {number}: cannot be read: {error}") from error

    return _table(path, content.schema, rows, "an Arrow file")


def open_arrow(path: Path) -> Any:
    """The table in an Arrow file, memory-mapped.

    Raises:
        ValueError: if it is none.
    """
    arrow = module_of("shards", "pyarrow", "an Arrow table")
    ipc = module_of("shards", "pyarrow.ipc", "an Arrow table")
    try:
        memory = arrow.memory_map(str(path))
        try:
            return ipc.open_stream(memory).read_all()
        except arrow.ArrowInvalid:
            memory.seek(0)
            return ipc.open_file(memory).read_all()
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Arrow: {error}") from error


class _Place(NamedTuple):
    """Where the rows of a batch are: of which group, from which row on."""

    path: Path
    group: int
    start: int
    sizes: dict[str, int]  # column -> bytes of a row, about

    def content(self, row: int, column: str, steps: tuple[str | int, ...], size: int) -> InTable:
        size = size or self.sizes.get(column, 0)
        return InTable(self.path, self.group, self.start + row, column, steps, size)


def _sizes(group: Any) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for number in range(group.num_columns):
        column = group.column(number)
        name = column.path_in_schema.split(".")[0]
        sizes[name] = sizes.get(name, 0) + column.total_uncompressed_size // max(1, group.num_rows)
    return sizes


def _values(batch: Any, place: _Place) -> Iterator[dict[str, Any]]:
    """Rows as plain values, one at a time; bytes stay where they are."""
    names = batch.schema.names
    readers = [_reader(batch.column(number), name, place) for number, name in enumerate(names)]
    for row in range(batch.num_rows):
        yield {name: read(row) for name, read in zip(names, readers, strict=True)}


def _reader(array: Any, name: str, place: _Place) -> Callable[[int], Any]:
    """What reads the value of a row from a column."""
    types = module_of("shards", "pyarrow.types", "a Parquet table")
    kind = _plain_type(array.type)
    if _is_binary(kind):
        return lambda row: _binary(array[row], row, name, place)
    if _is_file(kind):
        return lambda row: _embedded(array[row], row, name, (), place)
    if (types.is_list(kind) or types.is_large_list(kind)) and _is_file(kind.value_type):
        return lambda row: _files(array[row], row, name, place)
    longest_cell(place.path, name, array)
    return lambda row: array[row].as_py()


def _binary(value: Any, row: int, name: str, place: _Place) -> Embedded | None:
    return Embedded(None, place.content(row, name, (), _size(value))) if value.is_valid else None


def _files(value: Any, row: int, name: str, place: _Place) -> list[Embedded | None] | None:
    if not value.is_valid:
        return None
    return [_embedded(file, row, name, (at,), place) for at, file in enumerate(value)]


def _embedded(
    value: Any, row: int, name: str, steps: tuple[int, ...], place: _Place
) -> Embedded | None:
    if not value.is_valid:
        return None
    path = value["path"].as_py() if "path" in value.keys() else None  # noqa: SIM118
    held = value["bytes"]
    if not held.is_valid:
        return Embedded(path, None)
    return Embedded(path, place.content(row, name, (*steps, "bytes"), _size(held)))


def _size(value: Any) -> int:
    """Bytes of a value, which may be one of a dictionary."""
    return int(getattr(value, "value", value).as_buffer().size)


def _plain_type(kind: Any) -> Any:
    types = module_of("shards", "pyarrow.types", "a Parquet table")
    return kind.value_type if types.is_dictionary(kind) else kind


def _is_binary(kind: Any) -> bool:
    types = module_of("shards", "pyarrow.types", "a Parquet table")
    return any(
        check(kind)
        for check in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    )


def _is_file(kind: Any) -> bool:
    types = module_of("shards", "pyarrow.types", "a Parquet table")
    if not types.is_struct(kind):
        return False
    fields = {kind.field(number).name: kind.field(number).type for number in range(len(kind))}
    return "bytes" in fields and set(fields) <= _STRUCT and _is_binary(_plain_type(fields["bytes"]))


def _table(path: Path, schema: Any, rows: Any, what: str) -> Table:
    types = module_of("shards", "pyarrow.types", "a Parquet table")
    columns = check_header(path, schema.names)
    if next(rows(), None) is None:
        raise ValueError(f"{path} has columns and no rows")
    numbers = [
        field.name
        for field in schema
        if types.is_integer(field.type) or types.is_floating(field.type)
    ]
    return Table(
        path, columns, rows, what, class_names=_class_names(schema), numbers=frozenset(numbers)
    )


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Of the columns that `datasets` says hold numbers of classes, the classes' names."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        features = info["info"]["features"]
        classes = {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {
        name: names
        for name, names in classes.items()
        if isinstance(names, list) and all(isinstance(each, str) for each in names)
    }
