"""How an input is read: what the user says of it, and the rows that a table gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

QUOTES = ('"', "'", "none")


@dataclass(frozen=True, slots=True)
class TextFormat:
    """How tables of text are written; whatever is left out is inferred.

    Attributes:
        columns: names of the columns of a table without a header.
        delimiter: between a table's cells.
        quote: around cells with delimiters in them: ``"``, ``'`` or ``none``.
        encoding: of tables and texts.
    """

    columns: Sequence[str] = ()
    delimiter: str | None = None
    quote: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"'):
            raise ValueError(f"the delimiter must be one character, got {self.delimiter!r}")
        if self.quote is not None and self.quote not in QUOTES:
            raise ValueError(f"quote must be one of {', '.join(QUOTES)}, got {self.quote!r}")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the user says of an input; whatever is left out is inferred.

    Attributes:
        layout: one of ``layouts.find.LAYOUTS``.
        files: of a table: the columns of paths, URLs or files themselves.
        texts: of a table: the columns that go into the metadata, with a text for every sample.
        optional: of a table: those of them that samples may lack.
        arrays: of a table: columns of numbers that become ``.npy`` members.
        key: of a table: the column that names the samples.
        text: how tables of text, and texts, are written.
        root: the folder that paths in tables are relative to.
        members: of a folder: the endings of file names that name members (``left.png``).
        expected: members that every sample is to have.
        skip_broken: leaves broken rows of a table out, instead of refusing the table.
    """

    layout: str | None = None
    files: Sequence[str] = ()
    texts: Sequence[str] = ()
    optional: Sequence[str] = ()
    arrays: Sequence[str] = ()
    key: str | None = None
    text: TextFormat = field(default_factory=TextFormat)
    root: Path | None = None
    members: Sequence[str] = ()
    expected: Sequence[str] = ()
    skip_broken: bool = False

    @property
    def named_columns(self) -> list[str]:
        """Every column of a table that is named by its header's name."""
        key = [] if self.key is None else [self.key]
        return [*self.files, *self.texts, *self.optional, *self.arrays, *key]


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        where: its place in the table, for messages: ``line 7``, ``row 6``.
        values: by column; None where there is none.
        number: from 0.
    """

    where: str
    values: dict[str, Any]
    number: int


class BrokenRow(NamedTuple):
    """A row that cannot be read, and why."""

    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with named columns.

    Attributes:
        path: of its file.
        columns: their names.
        rows: goes through them from the first.
        what: kind, for the user: ``CSV separated by ';'``.
        notes: what was guessed in reading it.
        class_names: of columns of numbers that stand for classes.
        numbers: columns of numbers by the table's own schema.
        split: that the table says all of its rows belong to; None if it does not.
    """

    path: Path
    columns: list[str]
    rows: Callable[[], Iterator[Row | BrokenRow]]
    what: str
    notes: list[str] = field(default_factory=list)
    class_names: dict[str, list[str]] = field(default_factory=dict)
    numbers: frozenset[str] = frozenset()
    split: str | None = None


def check_header(path: Path, names: Iterable[str]) -> list[str]:
    """Names of columns, of which none is there twice; those without a name get one.

    Raises:
        ValueError: if one is.
    """
    columns: list[str] = []
    for number, name in enumerate(names, 1):
        if name and name in columns:
            raise ValueError(f"{path}: the column {name!r} is there twice; rename one of them")
        columns.append(name or f"column_{number}")
    return columns
