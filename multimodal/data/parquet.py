"""Parquet files that someone else made: how much they unpack to is known before it is unpacked.

A few kilobytes can unpack to terabytes in two ways: pages that compress well, and one long value
that every row repeats. Headers give the first away; of the second, values are read as references to
a dictionary, and what the rows repeat is counted before it is written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multimodal.core.errors import UserError
from multimodal.core.extras import module_of

FREE = 64 << 20  # bytes that any column may unpack to
RATIO = 200  # above that, how many times the file's size; texts reach 20
MAX_CELL = 64 << 20  # bytes of one text or preview
_ROWS = 1024  # read at a time


class ParquetSizeError(UserError, ValueError):
    """A Parquet file would unpack to far more than is on disk."""


def open_parquet(path: Path, extra: str, user: str) -> Any:
    """A ``pyarrow.parquet.ParquetFile`` whose texts and bytes are read as dictionaries.

    Args:
        path: of the file.
        extra: that installs pyarrow.
        user: what reads it, for the message of a missing package.

    Raises:
        ParquetSizeError: naming file and column.
        MissingExtraError: if pyarrow is not installed.
    """
    parquet = module_of(extra, "pyarrow.parquet", user)
    metadata = parquet.read_metadata(path)
    texts = []
    size = path.stat().st_size
    for number in range(metadata.num_columns):
        column = metadata.schema.column(number)
        if column.physical_type == "BYTE_ARRAY":
            texts.append(column.path)
        chunks = [metadata.row_group(i).column(number) for i in range(metadata.num_row_groups)]
        unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
        width = {"INT32": 4, "FLOAT": 4, "BOOLEAN": 1}.get(column.physical_type, 8)
        decoded = sum(chunk.num_values for chunk in chunks) * width
        for bytes_, what in ((unpacked, "of"), (decoded, "of values in")):
            if bytes_ > FREE and bytes_ > RATIO * size:
                raise ParquetSizeError(_message(path, column.path, bytes_, what, size))
    return parquet.ParquetFile(path, read_dictionary=texts)


def rows_of(file: Any, path: Path) -> Iterator[dict[str, Any]]:
    """The rows, one at a time; of a long value that many share only one copy is made.

    Raises:
        ParquetSizeError: if a value is too long for a text; naming file and column.
    """
    for batch in file.iter_batches(_ROWS):
        columns = {name: batch.column(i) for i, name in enumerate(batch.schema.names)}
        for name, column in columns.items():
            longest_cell(path, name, column)
        for row in range(batch.num_rows):
            yield {name: column[row].as_py() for name, column in columns.items()}


def longest_cell(path: Path, name: str, column: Any) -> int:
    """Bytes of the longest text of a column; 0 where it holds none.

    Raises:
        ParquetSizeError: if it is longer than any text.
    """
    compute = module_of("shards", "pyarrow.compute", "a Parquet table")
    longest = 0
    for chunk in getattr(column, "chunks", [column]):
        values = getattr(chunk, "dictionary", None)
        if values is not None and len(values):
            longest = max(longest, compute.max(compute.binary_length(values)).as_py() or 0)
    if longest > MAX_CELL:
        raise ParquetSizeError(
            f"{path}: the column {name!r} has a value of {longest:,} bytes; expected at most "
            f"{MAX_CELL:,}: write longer values into files of their own"
        )
    return longest


def refuse_repeats(path: Path, table: Any) -> None:
    """Refuses texts that take far more memory than the file, were every row to have its own.

    Raises:
        ParquetSizeError: naming file and column.
    """
    compute = module_of("search", "pyarrow.compute", "a table of embeddings")
    size = path.stat().st_size
    for name in table.column_names:
        total = 0
        for chunk in table.column(name).chunks:
            if hasattr(chunk, "dictionary") and len(chunk.dictionary):
                lengths = compute.binary_length(chunk.dictionary)
                total += compute.sum(lengths.take(chunk.indices)).as_py() or 0
        if total > FREE and total > RATIO * size:
            raise ParquetSizeError(_message(path, name, total, "of", size))


def _message(path: Path, column: str, unpacked: int, what: str, size: int) -> str:
    return (
        f"{path}: its {size:,} bytes would unpack to {unpacked:,} bytes {what} the column "
        f"{column!r}; expected at most {RATIO} times as many, so the file is damaged or made to "
        "fill memory: write it anew from its source"
    )
