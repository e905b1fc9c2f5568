"""Tables of text: CSV and TSV in any dialect, read strictly.

The dialect is the first one in which the whole file is consistent: every row has as many cells as
the header, every quote is closed. Where there is none, the message names the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from multimodal.core.strict_json import excerpt
from multimodal.data.packing.tables.encoding import Encoding, find_encoding
from multimodal.data.packing.tables.reading import BrokenRow, Reading, Row, Table, check_header
from multimodal.data.packing.tables.records import (
    NAMES,
    BrokenRecord,
    Dialect,
    Record,
    TextSource,
    opened_text,
    records,
)
from multimodal.data.packing.tables.values import is_caption_name, texts_in
from multimodal.data.shards.formats import is_media_name

_DELIMITERS = (",", "\t", ";", "|")
_IN_NAMES = "_-./\\'\"()[]?"  # signs that names of columns hold
_LOOKED_AT = 200  # rows by which the delimiter is chosen
_SHOWN = 3  # broken rows in a message
_SEP = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)  # Excel's first line


def read_delimited(path: Path, reading: Reading) -> Table:
    """A table of text.

    Raises:
        ValueError: if it is empty, has a column twice, or is consistent in no dialect; names the
            file and the line.
    """
    encoding = find_encoding(path, reading.text.encoding)
    source, hint = _start(path, encoding)
    delimiter = reading.text.delimiter or hint or _find_delimiter(source, reading)
    dialect, broken = _find_dialect(source, delimiter, reading)
    header = next(records(source, dialect), None)
    if header is None:
        raise ValueError(f"{path} is empty")
    names = list(reading.text.columns) or [cell.strip() for cell in header.cells]
    has_header = not reading.text.columns
    if has_header:
        _refuse_data(path, names)
    columns = check_header(path, names)
    if broken and not reading.skip_broken:
        _refuse_header(path, source, dialect, len(columns))
    _refuse_ragged(path, broken, len(columns), dialect, reading)
    lists = _columns_of_lists(source, dialect, columns, has_header)

    def rows() -> Iterator[Row | BrokenRow]:
        number = 0
        for place, record in enumerate(records(source, dialect)):
            if (place == 0 and has_header) or not any(record.cells):
                continue
            where = f"line {record.line}"
            if len(record.cells) != len(columns):
                yield BrokenRow(where, _ragged(len(record.cells), len(columns)))
            else:
                yield _row(where, dict(zip(columns, record.cells, strict=True)), number, lists)
            number += 1

    if next(rows(), None) is None:
        raise ValueError(f"{path} has a header and no rows")
    what = f"a table {dialect.what}"
    if encoding.name not in ("utf-8", "utf-8-sig"):
        what += f" in {encoding.name}"
    notes = [encoding.note] if encoding.note else []
    notes += [f"{path.name}: each cell of {column!r} is a list of texts" for column in lists]
    return Table(path, columns, rows, what, notes)


def _columns_of_lists(
    source: TextSource, dialect: Dialect, columns: Sequence[str], has_header: bool
) -> list[str]:
    """Columns of captions whose cells, as far as they are looked at, all hold lists of texts."""
    first = islice(records(source, dialect), int(has_header), _LOOKED_AT)
    rows = [record.cells for record in first if len(record.cells) == len(columns)]
    return [
        column
        for place, column in enumerate(columns)
        if is_caption_name(column)
        and (cells := [row[place] for row in rows if row[place].strip()])
        and all(texts_in(cell) is not None for cell in cells)
    ]


def _row(where: str, values: dict[str, Any], number: int, lists: Sequence[str]) -> Row | BrokenRow:
    for column in lists:
        if values[column].strip():
            texts = texts_in(values[column])
            if texts is None:
                detail = f"{column!r} is not a list of texts as in other rows"
                return BrokenRow(where, f"{detail}: {excerpt(values[column])}")
            values[column] = texts
    return Row(where, values, number)


def _refuse_header(path: Path, source: TextSource, dialect: Dialect, columns: int) -> None:
    """A first line of one cell, as a remark or a title, above rows of several."""
    lengths = {len(record.cells) for record in islice(records(source, dialect), 1, None)}
    if columns == 1 and len(lengths) == 1 and columns not in lengths:
        raise ValueError(
            f"{path}: line {source.skipped + 1} has one cell and every other row "
            f"{lengths.pop()}: is it no header? Take it out of the file, or name the columns that "
            "it lacks"
        )


def _start(path: Path, encoding: Encoding) -> tuple[TextSource, str | None]:
    """Where the table begins, and the delimiter that its first line names."""
    with opened_text(path, encoding.name) as file:
        match = _SEP.fullmatch(file.readline(16))
    return TextSource(path, encoding.name, int(match is not None)), match[1] if match else None


def _find_delimiter(source: TextSource, reading: Reading) -> str:
    """What separates the header's cells; of several, what separates the rows as well."""
    preferred = "\t" if ".tsv" in source.path.name.lower() else ","
    candidates = []
    for delimiter in sorted(_DELIMITERS, key=lambda each: each != preferred):
        try:
            record = next(records(source, Dialect(delimiter)), None)
        except BrokenRecord:
            record = next(records(source, Dialect(delimiter, "none")), None)
        if record is None:
            raise ValueError(f"{source.path} is empty")
        if len(record.cells) > 1:
            header = {cell.strip() for cell in record.cells}
            if reading.named_columns and set(reading.named_columns) <= header:
                return delimiter
            candidates.append(delimiter)
    if not candidates:
        _refuse_odd_delimiter(source)
    if len(candidates) < 2:
        return candidates[0] if candidates else preferred
    consistent = [d for d in candidates if _is_consistent(source, d)]
    if len(consistent) == 1:
        return consistent[0]
    named = ", ".join(NAMES[each] for each in candidates)
    raise ValueError(f"{source.path} may be separated by {named}: say by which (--delimiter)")


def _refuse_odd_delimiter(source: TextSource) -> None:
    """One column may be several, between which there is a sign that is none of the usual ones."""
    header = next(records(source, Dialect(",")), None)
    cell = "" if header is None else header.cells[0]
    for sign in sorted(set(cell)):
        if sign.isalnum() or sign.isspace() or sign in _IN_NAMES:
            continue
        if _is_consistent(source, sign):
            raise ValueError(
                f"{source.path} may be separated by {sign!r}, which is in its header and as often "
                f"in every row: say so (--delimiter '{sign}'), or that it has one column "
                "(--delimiter ,)"
            )


def _is_consistent(source: TextSource, delimiter: str) -> bool:
    lengths = set()
    try:
        for number, record in enumerate(records(source, Dialect(delimiter))):
            lengths.add(len(record.cells))
            if number >= _LOOKED_AT:
                break
    except BrokenRecord:
        return False
    return len(lengths) == 1


def _find_dialect(
    source: TextSource, delimiter: str, reading: Reading
) -> tuple[Dialect, dict[int, int]]:
    """The first dialect without a broken row, else the usual one with its broken rows."""
    if reading.text.quote is not None:
        dialects = [Dialect(delimiter, reading.text.quote)]
    else:
        dialects = [Dialect(delimiter)]
        if _has_escapes(source):
            dialects.append(Dialect(delimiter, escape="\\"))
        if _is_quoted_by(source, "'"):
            dialects.insert(0, Dialect(delimiter, "'"))
        if delimiter == "\t":  # mostly written without quotes
            dialects.append(Dialect(delimiter, "none"))
    failures: list[tuple[Dialect, dict[int, int] | BrokenRecord]] = []
    for dialect in dialects:
        try:
            broken = _broken_rows(source, dialect, reading)
        except BrokenRecord as error:
            failures.append((dialect, error))
            continue
        if not broken:
            return dialect, broken
        failures.append((dialect, broken))
    dialect, problem = failures[0]
    if isinstance(problem, BrokenRecord):
        raise ValueError(f"{source.path}, line {problem.line}: {problem}") from problem
    return dialect, problem


def _has_escapes(source: TextSource) -> bool:
    """Whether there are backslashes, and all of them are before quotes or one another."""
    escaped = False
    with opened_text(source.path, source.encoding) as file:
        for line in file:
            if "\\" in line:
                escaped = True
                if "\\" in line.replace("\\\\", "").replace('\\"', ""):
                    return False
    return escaped


def _is_quoted_by(source: TextSource, quote: str) -> bool:
    with opened_text(source.path, source.encoding) as file:
        for _ in range(source.skipped):
            file.readline()
        header = file.readline().strip()
    return len(header) > 1 and header.startswith(quote) and header.endswith(quote)


def _broken_rows(source: TextSource, dialect: Dialect, reading: Reading) -> dict[int, int]:
    """The lines of rows that are not as long as the header, and how many cells they have."""
    width, broken = len(reading.text.columns), {}
    for record in records(source, dialect):
        if not width:
            width = len(record.cells)
        elif any(record.cells):
            if len(record.cells) != width:
                broken[record.line] = len(record.cells)
            elif len(record.lines) > 1 and reading.text.quote is None:
                _refuse_swallowed(record, dialect, width)
    return broken


def _refuse_swallowed(record: Record, dialect: Dialect, width: int) -> None:
    """A quoted cell over several lines, each of which would be a row of its own."""
    rows = [line.rstrip("\r\n").split(dialect.delimiter) for line in record.lines]
    if any(len(row) != width for row in rows):
        return
    files = [place for place, cell in enumerate(rows[0]) if is_media_name(cell)]
    if any(not is_media_name(row[place]) for row in rows for place in files):
        return
    last = record.line + len(rows) - 1
    raise BrokenRecord(
        record.line,
        f"a quote is opened here and closed in line {last}, and each of these lines would be a row "
        "of its own: take out a stray quote, or say that these are cells of several lines "
        f"(--quote '{dialect.quote}')",
    )


def _refuse_data(path: Path, names: Sequence[str]) -> None:
    """A first line of files is not a header."""
    if files := [name for name in names if is_media_name(name)]:
        raise ValueError(
            f"{path} has no header: its first line names the file {excerpt(files[0])}; name the "
            f"columns (--columns {' '.join(f'NAME{n}' for n in range(1, len(names) + 1))})"
        )


def _ragged(cells: int, columns: int) -> str:
    return f"{cells} cells, for {columns} columns"


def _refuse_ragged(
    path: Path, broken: dict[int, int], columns: int, dialect: Dialect, reading: Reading
) -> None:
    if not broken or reading.skip_broken:
        return
    lines = [f"line {line}: {_ragged(n, columns)}" for line, n in [*broken.items()][:_SHOWN]]
    if len(broken) > _SHOWN:
        lines.append(f"and {len(broken) - _SHOWN} more")
    name = NAMES.get(dialect.delimiter, repr(dialect.delimiter))
    raise ValueError(
        f"{path}, {'; '.join(lines)}. A cell with {name} in it has to be in quotes; --skip-broken "
        "leaves these rows out, and lists them"
    )
