"""Tables of text: CSV and TSV in any dialect, read strictly.

The dialect is the first one in which the whole file is consistent: every row has as many cells as
the header, every quote is closed. Where there is none, the message names the line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, NamedTuple

from multimodal.core.strict_json import excerpt
from multimodal.data.packing.tables.encoding import Encoding, find_encoding, open_bytes
from multimodal.data.packing.tables.reading import BrokenRow, Reading, Row, Table, check_header
from multimodal.data.shards.formats import is_media_name

_DELIMITERS = (",", "\t", ";", "|")
_NAMES = {",": "','", "\t": "tabs", ";": "';'", "|": "'|'"}
_LONGEST_CELL = 1 << 24  # characters; beyond it a quote is not closed
_LOOKED_AT = 200  # rows by which the delimiter is chosen
_SHOWN = 3  # broken rows in a message
_SEP = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)  # Excel's first line


class Dialect(NamedTuple):
    """How the cells of a table are written."""

    delimiter: str
    quote: str = '"'
    escape: str | None = None

    @property
    def what(self) -> str:
        """In words, for the user."""
        name = _NAMES.get(self.delimiter, repr(self.delimiter))
        quote = {'"': "", "none": ", without quotes"}.get(self.quote, f", quoted by {self.quote}")
        return f"separated by {name}{quote}{', with backslashes' if self.escape else ''}"


class _Record(NamedTuple):
    line: int
    cells: list[str]
    lines: tuple[str, ...]


class _Broken(ValueError):
    """A record at which reading ends."""

    def __init__(self, line: int, detail: str) -> None:
        super().__init__(detail)
        self.line = line


class _Source(NamedTuple):
    """A file of text: its encoding, and the lines before the header."""

    path: Path
    encoding: str
    skipped: int


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
    header = next(_records(source, dialect), None)
    if header is None:
        raise ValueError(f"{path} is empty")
    names = list(reading.text.columns) or [cell.strip() for cell in header.cells]
    has_header = not reading.text.columns
    if has_header:
        _refuse_data(path, names)
    columns = check_header(path, names)
    _refuse_ragged(path, broken, len(columns), dialect, reading)

    def rows() -> Iterator[Row | BrokenRow]:
        number = 0
        for place, record in enumerate(_records(source, dialect)):
            if (place == 0 and has_header) or not any(record.cells):
                continue
            where = f"line {record.line}"
            if len(record.cells) != len(columns):
                yield BrokenRow(where, _ragged(len(record.cells), len(columns)))
            else:
                yield Row(where, dict(zip(columns, record.cells, strict=True)), number)
            number += 1

    if next(rows(), None) is None:
        raise ValueError(f"{path} has a header and no rows")
    what = f"a table {dialect.what}"
    if encoding.name not in ("utf-8", "utf-8-sig"):
        what += f" in {encoding.name}"
    return Table(path, columns, rows, what, [encoding.note] if encoding.note else [])


def _start(path: Path, encoding: Encoding) -> tuple[_Source, str | None]:
    """Where the table begins, and the delimiter that its first line names."""
    with _text(path, encoding.name) as file:
        found = _SEP.fullmatch(file.readline(16))
    return _Source(path, encoding.name, int(found is not None)), found[1] if found else None


@contextmanager
def _text(path: Path, encoding: str) -> Iterator[IO[str]]:
    with open_bytes(path) as file:
        yield TextIOWrapper(file, encoding, newline="")


class _Lines:
    """Lines of a file; those since the last record are kept."""

    def __init__(self, file: IO[str], number: int) -> None:
        self._file = file
        self.number = number
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.number += 1
            self.taken.append(line)
            yield line


def _records(source: _Source, dialect: Dialect) -> Iterator[_Record]:
    with _text(source.path, source.encoding) as file:
        for _ in range(source.skipped):
            file.readline()
        lines = _Lines(file, source.skipped)
        reader = csv.reader(
            lines,
            delimiter=dialect.delimiter,
            quotechar=None if dialect.quote == "none" else dialect.quote,
            quoting=csv.QUOTE_NONE if dialect.quote == "none" else csv.QUOTE_MINIMAL,
            escapechar=dialect.escape,
            skipinitialspace=True,
            strict=True,
        )
        while True:
            first = lines.number + 1
            lines.taken.clear()
            others = csv.field_size_limit(_LONGEST_CELL)  # the process has one limit for all
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise _Broken(first, _in_words(error, first, lines.number)) from error
            finally:
                csv.field_size_limit(others)
            if cells:
                yield _Record(first, cells, tuple(lines.taken))


def _in_words(error: csv.Error, first: int, last: int) -> str:
    text = str(error)
    if "unexpected end" in text or "field limit" in text:
        return "a quote is opened here and not closed"
    if "expected after" in text:
        where = "" if first == last else f" of the cell that ends in line {last}"
        return (
            f"text follows the closing quote{where}: a quote within a quoted cell is written twice "
            "(--quote none takes quotes as they are)"
        )
    return text


def _find_delimiter(source: _Source, reading: Reading) -> str:
    """What separates the header's cells; of several, what separates the rows as well."""
    preferred = "\t" if ".tsv" in source.path.name.lower() else ","
    candidates = []
    for delimiter in sorted(_DELIMITERS, key=lambda each: each != preferred):
        try:
            record = next(_records(source, Dialect(delimiter)), None)
        except _Broken:
            record = next(_records(source, Dialect(delimiter, "none")), None)
        if record is None:
            raise ValueError(f"{source.path} is empty")
        if len(record.cells) > 1:
            header = {cell.strip() for cell in record.cells}
            if reading.named_columns and set(reading.named_columns) <= header:
                return delimiter
            candidates.append(delimiter)
    if len(candidates) < 2:
        return candidates[0] if candidates else preferred
    consistent = [d for d in candidates if _is_consistent(source, d)]
    if len(consistent) == 1:
        return consistent[0]
    named = ", ".join(_NAMES[each] for each in candidates)
    raise ValueError(f"{source.path} may be separated by {named}: say by which (--delimiter)")


def _is_consistent(source: _Source, delimiter: str) -> bool:
    lengths = set()
    try:
        for number, record in enumerate(_records(source, Dialect(delimiter))):
            lengths.add(len(record.cells))
            if number >= _LOOKED_AT:
                break
    except _Broken:
        return False
    return len(lengths) == 1


def _find_dialect(
    source: _Source, delimiter: str, reading: Reading
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
    failures: list[tuple[Dialect, dict[int, int] | _Broken]] = []
    for dialect in dialects:
        try:
            broken = _broken_rows(source, dialect, reading)
        except _Broken as error:
            failures.append((dialect, error))
            continue
        if not broken:
            return dialect, broken
        failures.append((dialect, broken))
    dialect, problem = failures[0]
    if isinstance(problem, _Broken):
        raise ValueError(f"{source.path}, line {problem.line}: {problem}") from problem
    return dialect, problem


def _has_escapes(source: _Source) -> bool:
    """Whether there are backslashes, and all of them are before quotes or one another."""
    found = False
    with _text(source.path, source.encoding) as file:
        for line in file:
            if "\\" in line:
                found = True
                if "\\" in line.replace("\\\\", "").replace('\\"', ""):
                    return False
    return found


def _is_quoted_by(source: _Source, quote: str) -> bool:
    with _text(source.path, source.encoding) as file:
        for _ in range(source.skipped):
            file.readline()
        header = file.readline().strip()
    return len(header) > 1 and header.startswith(quote) and header.endswith(quote)


def _broken_rows(source: _Source, dialect: Dialect, reading: Reading) -> dict[int, int]:
    """The lines of rows that are not as long as the header, and how many cells they have."""
    width, broken = len(reading.text.columns), {}
    for record in _records(source, dialect):
        if not width:
            width = len(record.cells)
        elif any(record.cells):
            if len(record.cells) != width:
                broken[record.line] = len(record.cells)
            elif len(record.lines) > 1 and reading.text.quote is None:
                _refuse_swallowed(record, dialect, width)
    return broken


def _refuse_swallowed(record: _Record, dialect: Dialect, width: int) -> None:
    """A quoted cell over several lines, each of which would be a row of its own."""
    rows = [line.rstrip("\r\n").split(dialect.delimiter) for line in record.lines]
    if any(len(row) != width for row in rows):
        return
    files = [place for place, cell in enumerate(rows[0]) if is_media_name(cell)]
    if any(not is_media_name(row[place]) for row in rows for place in files):
        return
    last = record.line + len(rows) - 1
    raise _Broken(
        record.line,
        f"a quote is opened here and closed in line {last}, and each of these lines would be a row "
        "of its own: take out a stray quote, or say that these are cells of several lines "
        f"(--quote '{dialect.quote}')",
    )


def _refuse_data(path: Path, names: Sequence[str]) -> None:
    """A first line of files is no header."""
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
    name = _NAMES.get(dialect.delimiter, repr(dialect.delimiter))
    raise ValueError(
        f"{path}, {'; '.join(lines)}. A cell with {name} in it has to be in quotes; --skip-broken "
        "leaves these rows out, and lists them"
    )
