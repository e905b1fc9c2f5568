"""Tables in JSON: lines of objects, a list of objects, or an object that maps files to captions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multimodal.core.strict_json import excerpt, unique_keys
from multimodal.data.packing.tables.encoding import Encoding, find_encoding, open_bytes
from multimodal.data.packing.tables.reading import BrokenRow, Reading, Row, Table, check_header
from multimodal.data.shards.formats import is_media_name

_LONGEST_LINE = 1 << 28  # bytes


def read_json_lines(path: Path, reading: Reading) -> Table:
    """A table of one JSON object in each line.

    Raises:
        ValueError: if it is empty, or a line is not an object; names the file and the line.
    """
    encoding = find_encoding(path, reading.text.encoding)

    def rows() -> Iterator[Row | BrokenRow]:
        number = 0
        for line, text in enumerate(_lines(path, encoding), 1):
            if not text.strip():
                continue
            try:
                yield Row(f"line {line}", _object(text), number)
            except ValueError as error:
                if not reading.skip_broken:
                    raise ValueError(f"{path}, line {line}: {error}") from error
                yield BrokenRow(f"line {line}", str(error))
            number += 1

    return _table(path, rows, "a table of JSON lines", encoding)


def read_document(path: Path, content: Any) -> Table:
    """A table of what a JSON document holds.

    Args:
        path: of the document.
        content: a list of objects, under a key of its own or not; an object whose keys name files,
            and whose values are their captions or objects; or an object of columns.

    Raises:
        ValueError: if it is none of these; names the entry.
    """
    entries, what = _entries(path, content)

    def rows() -> Iterator[Row | BrokenRow]:
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise ValueError(
                    f"{path}, entry {number}: expected an object, got {excerpt(entry)}"
                )
            yield Row(f"entry {number}", entry, number)

    return _table(path, rows, what, Encoding("utf-8"))


def _entries(path: Path, content: Any) -> tuple[list[Any], str]:
    if isinstance(content, list):
        return content, "a JSON list of objects"
    if isinstance(content, dict) and content:
        if all(map(is_media_name, content)):
            entries = [
                {"file": name} | (value if isinstance(value, dict) else {"caption": value})
                for name, value in content.items()
            ]
            return entries, "a JSON object of files"
        lists = {key: value for key, value in content.items() if isinstance(value, list)}
        tables = [key for key, value in lists.items() if value and isinstance(value[0], dict)]
        if len(tables) == 1:
            return content[tables[0]], f"a JSON list of objects under {tables[0]!r}"
        if len(lists) == len(content) and len({len(each) for each in lists.values()}) == 1:
            columns = [
                dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)
            ]
            return columns, "a JSON object of columns"
    raise ValueError(
        f"{path}: expected COCO's or Karpathy's JSON, a list of objects, or an object of files and "
        f"their captions; got {excerpt(content)}"
    )


def load_json(path: Path, reading: Reading) -> Any:
    """The content of a JSON document.

    Raises:
        ValueError: if it is none; names the file, line and column.
    """
    encoding = find_encoding(path, reading.text.encoding)
    with open_bytes(path) as file:
        data = file.read()
    if not data.strip():
        raise ValueError(f"{path} is empty")
    try:
        return json.loads(data.decode(encoding.name), object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError(f"{path} is not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _lines(path: Path, encoding: Encoding) -> Iterator[str]:
    with open_bytes(path) as file:
        if encoding.name.startswith(("utf-16", "utf-32")):
            yield from file.read().decode(encoding.name).splitlines()
            return
        while line := file.readline(_LONGEST_LINE):
            yield line.decode(encoding.name)


def _object(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {excerpt(row)}")
    return row


def _table(path: Path, rows: Any, what: str, encoding: Encoding) -> Table:
    columns: dict[str, None] = {}
    for row in rows():
        if isinstance(row, Row):
            columns.update(dict.fromkeys(row.values))
    if not columns:
        raise ValueError(f"{path} is empty: it holds no object with a key")
    notes = [encoding.note] if encoding.note else []
    return Table(path, check_header(path, columns), rows, what, notes)
