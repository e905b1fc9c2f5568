"""Samples from tables: a row each, or a row for each caption."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from multimodal.core.strict_json import excerpt
from multimodal.data.packing.contents import AtURL, Content, InFile, Inline
from multimodal.data.packing.fetch import is_url
from multimodal.data.packing.items import ANY, Item, Refusal, Samples, Say
from multimodal.data.packing.tables.columnar import Embedded
from multimodal.data.packing.tables.fields import with_fields
from multimodal.data.packing.tables.reading import BrokenRow, Reading, Row, Table
from multimodal.data.packing.tables.roles import Roles, find_roles
from multimodal.data.packing.tables.splits import split_named
from multimodal.data.packing.tables.values import (
    is_caption_name,
    is_nothing,
    plain,
    text_fault,
    without_nothings,
)
from multimodal.data.shards.formats import BY_EXTENSION, extension_of

_GROUPED = 1.5  # rows for a file from which on they are its captions


class RefusedRow(Exception):
    """A row that is not a sample."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def samples_of(
    tables: Sequence[Table], reading: Reading, say: Say, plain_names: bool = False
) -> Samples:
    """The samples of tables with the same columns.

    Args:
        tables: one after another; rows are numbered through all of them.
        reading: what the user says of their columns.
        say: prints what was inferred.
        plain_names: names members without their column's ``file_name``.

    Raises:
        ValueError: if a column is not there, or holds something else than it should.
    """
    tables = [with_fields(table, reading) for table in tables]
    first = tables[0]
    for note in first.notes:
        say(note)
    roles = replace(find_roles(first, reading, say), plain_names=plain_names)
    grouped = _caption_column(first, roles, reading)
    count = f"{len(tables)} files like {first.path.name}" if len(tables) > 1 else first.path.name
    rows = (
        f"; a sample for each of {grouped[0]}, all its captions in {grouped[1]}" if grouped else ""
    )
    say(f"{count}: {first.what}; {roles.what}{rows} (--files, --texts change that)")
    if roles.root != first.path.parent and roles.files:
        say(f"the paths in {first.path.name} are read in {roles.root} (--root changes that)")
    names = _Names(reading)
    for table in tables:
        if table is not first and set(roles.files) - set(table.columns):
            roles = replace(find_roles(table, reading, say), plain_names=plain_names)
        if grouped:
            yield from _grouped(table, roles, *grouped)
        else:
            yield from _rows(table, roles, names)


class _Names:
    """Names of rows: their numbers through all tables, or what a column holds."""

    def __init__(self, reading: Reading) -> None:
        self._column = reading.key
        self._number = -1

    def next(self, row: Row) -> str:
        self._number += 1
        if self._column is None:
            return f"{self._number:09d}"
        name = row.values.get(self._column)
        if is_nothing(name):
            raise RefusedRow("bad_key", f"{row.where}: the column {self._column!r} is empty")
        return str(name)

    def skip(self) -> str:
        self._number += 1
        return f"{self._number:09d}"


def _rows(table: Table, roles: Roles, names: _Names) -> Samples:
    for row in table.rows():
        if isinstance(row, BrokenRow):
            yield Refusal(
                names.skip(), "broken_row", f"{table.path.name}, {row.where}: {row.detail}"
            )
            continue
        name = row.where
        try:
            name = names.next(row)
            yield _item(table, roles, row, name)
        except RefusedRow as error:
            yield Refusal(name, error.reason, f"{table.path.name}, {row.where}: {error.detail}")


def _item(table: Table, roles: Roles, row: Row, name: str) -> Item:
    members: dict[str, Content] = {}
    for column in roles.files:
        prefix = _prefix(column) if roles.plain_names else column
        members.update(_members(prefix, row.values.get(column), roles.root))
    for column in roles.arrays:
        if (value := row.values.get(column)) is not None:
            members[f"{column}.npy"] = _array(column, value)
    metadata = metadata_of(row.values, roles.metadata, roles.texts, table.class_names)
    return Item(name, members, metadata, _split(table, roles, row), roles.texts)


def _prefix(column: str) -> str:
    """What a column of file names is of: ``file_name``, ``depth_file_name``."""
    return re.sub(r"_?file_names?$", "", column)


def _split(table: Table, roles: Roles, row: Row) -> str | None:
    value = row.values.get(roles.split) if roles.split else None
    return (split_named(value) if isinstance(value, str) else None) or table.split


def metadata_of(
    values: Mapping[str, Any],
    columns: Sequence[str],
    texts: Sequence[str] = (),
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """The metadata of a row: values that say something, classes by their names.

    Raises:
        RefusedRow: if one of ``texts`` is none.
    """
    metadata = {}
    for column in columns:
        value = values.get(column)
        names = (class_names or {}).get(column)
        if names is not None and isinstance(value, int):
            if not -1 <= value < len(names):
                raise RefusedRow("metadata", f"{column!r} is {value}, of {len(names)} classes")
            value = names[value] if value >= 0 else None
        value = without_nothings(value)
        if column in texts and (fault := text_fault(value)):
            raise RefusedRow("no_text", f"{column!r} {fault}")
        if is_nothing(value) and (not isinstance(value, list) or is_caption_name(column)):
            continue
        try:
            metadata[column] = plain(value)
        except ValueError:
            raise RefusedRow("metadata", f"{column!r} holds bytes, which are not JSON") from None
    return metadata


def _members(column: str, value: Any, root: Path) -> Iterator[tuple[str, Content]]:
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from _members(f"{column}_{number}".lstrip("_"), each, root)
        return
    if is_nothing(value):
        return
    if isinstance(value, Embedded):
        extension = extension_of(value.path or "")
        if value.content is not None:
            known = extension in BY_EXTENSION
            dot = "." if column else ""
            yield f"{column}{dot}{extension if known else ANY}", value.content
            return
        value = value.path or ""
    if not isinstance(value, str):
        raise RefusedRow("metadata", f"{column!r} is not a path: {excerpt(value)}")
    yield member_at(column, value.strip(), root)


def member_at(column: str, text: str, root: Path) -> tuple[str, Content]:
    """A member's name and content, by a path below ``root`` or a URL.

    Args:
        column: the first part of the name; the name is the extension alone if it is empty.
        text: path or URL.
        root: that it is relative to, and below.

    Raises:
        RefusedRow: if there is no such file, or it is outside of ``root``.
    """
    dot = "." if column else ""
    if is_url(text) and not text.startswith("file://"):
        extension = extension_of(text.partition("?")[0].partition("#")[0])
        return f"{column}{dot}{extension if extension in BY_EXTENSION else ANY}", AtURL(text)
    path = file_below(root, text.removeprefix("file://"))
    return f"{column}{dot}{extension_of(path.name)}", InFile(path, path.stat().st_size)


def file_below(root: Path, text: str) -> Path:
    """The file that a table names, which lies in ``root``.

    Raises:
        RefusedRow: if it does not, or there is none.
    """
    if "\0" in text or len(text) > 4096 or not text:
        raise RefusedRow("no_file", f"{excerpt(text)} is not a path")
    path = root / text.replace("\\", "/") if "\\" in text else root / text
    # By the path as it is written: links that the user has made inside of the folder are his.
    written = Path(_normal(path.absolute()))
    if not written.is_relative_to(_normal(root.absolute())):
        outside = f"{text} is outside of {root}"
        raise RefusedRow("outside", f"{outside}; a root that holds both takes it (--root)")
    try:
        if not path.is_file():
            return _same_name(path)
    except OSError as error:
        raise RefusedRow("no_file", f"{excerpt(text)}: {error.strerror}") from error
    return path


def _same_name(path: Path) -> Path:
    """A file of this name but for its Unicode form and the case of its extension.

    Raises:
        RefusedRow: if there is none; names one that differs in case only.
    """
    named, wanted = path.name, _folded(path.name)
    there = _listed(path.parent)
    if len(same := [name for name in there if _folded(name) == wanted]) == 1:
        return path.with_name(same[0])
    near = [name for name in there if name.casefold() == named.casefold()]
    hint = f"; there is {near[0]}" if near else ""
    raise RefusedRow("no_file", f"there is no file {path}{hint}")


def _folded(name: str) -> str:
    stem, dot, extension = unicodedata.normalize("NFC", name).rpartition(".")
    return f"{stem}{dot}{extension.lower()}"


@lru_cache(maxsize=8)
def _listed(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _normal(path: Path | str) -> str:
    from os.path import normpath

    return normpath(path)


def _array(column: str, value: Any) -> Inline:
    try:
        array = np.array(value)
    except ValueError:
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise RefusedRow("metadata", f"{column!r} is not an array of numbers: {excerpt(value)}")
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    buffer = io.BytesIO()
    npy.write_array(buffer, array, allow_pickle=False)
    return Inline(buffer.getvalue())


def _caption_column(table: Table, roles: Roles, reading: Reading) -> tuple[str, str] | None:
    """File and text column, where a table has a row for each caption of a file and no more."""
    if reading.key or reading.layout == "rows" or len(roles.files) != 1 or len(roles.texts) != 1:
        return None
    numbers = {"comment_number", "caption_number", "caption_id", "sentid", "column_1"}
    others = set(table.columns) - {*roles.files, *roles.texts, roles.split} - numbers
    if others:
        return None
    column = roles.files[0]
    values = [row.values.get(column) for row in table.rows() if isinstance(row, Row)]
    names = [name for name in values if isinstance(name, str)]
    if not names or len(names) < _GROUPED * len(set(names)):
        return None
    return column, roles.texts[0]


def _grouped(table: Table, roles: Roles, column: str, text: str) -> Samples:
    items: dict[str, Item] = {}
    for row in table.rows():
        name = str(row.values.get(column)).strip() if isinstance(row, Row) else ""
        where = f"{table.path.name}, {row.where}"
        if isinstance(row, BrokenRow):
            yield Refusal(row.where, "broken_row", f"{where}: {row.detail}")
            continue
        try:
            item = _item(table, roles, row, name)
        except RefusedRow as error:
            yield Refusal(name, error.reason, f"{where}: {error.detail}")
            continue
        said = item.metadata[text]
        texts = said if isinstance(said, list) else [said]
        before = items.get(name)
        earlier = before.metadata[text] if before else []
        items[name] = replace(before or item, metadata={text: [*earlier, *texts]})
    yield from (replace(item, name=_stem(item.name), key="") for item in items.values())


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)
