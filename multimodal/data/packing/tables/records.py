"""Records of a text table: its lines, as one dialect cuts them into cells, read strictly."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, NamedTuple

from multimodal.data.packing.tables.encoding import open_bytes

NAMES = {",": "','", "\t": "tabs", ";": "';'", "|": "'|'"}
_LONGEST_CELL = 1 << 24  # characters; beyond it a quote is not closed


class Dialect(NamedTuple):
    """How the cells of a table are written."""

    delimiter: str
    quote: str = '"'
    escape: str | None = None

    @property
    def what(self) -> str:
        """In words, for the user."""
        name = NAMES.get(self.delimiter, repr(self.delimiter))
        quote = {'"': "", "none": ", without quotes"}.get(self.quote, f", quoted by {self.quote}")
        return f"separated by {name}{quote}{', with backslashes' if self.escape else ''}"


class Record(NamedTuple):
    """A record: the number of its first line, its cells, and the lines that it was read from."""

    line: int
    cells: list[str]
    lines: tuple[str, ...]


class BrokenRecord(ValueError):
    """A record at which reading ends."""

    def __init__(self, line: int, detail: str) -> None:
        super().__init__(detail)
        self.line = line


class TextSource(NamedTuple):
    """A file of text: its encoding, and the lines before the header."""

    path: Path
    encoding: str
    skipped: int


@contextmanager
def opened_text(path: Path, encoding: str) -> Iterator[IO[str]]:
    """A text file, unpacked where it has to be, with its line ends as they are."""
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


def records(source: TextSource, dialect: Dialect) -> Iterator[Record]:
    """The records of a file that are not empty.

    Raises:
        BrokenRecord: at the first that the dialect cannot read.
    """
    with opened_text(source.path, source.encoding) as file:
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
                raise BrokenRecord(first, _in_words(error, first, lines.number)) from error
            finally:
                csv.field_size_limit(others)
            if cells:
                yield Record(first, cells, tuple(lines.taken))


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
