"""What the columns of a table are for: files, texts, numbers, metadata."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from multimodal.core.strict_json import excerpt
from multimodal.core.suggest import suggest
from multimodal.data.packing.fetch import is_url
from multimodal.data.packing.items import Say
from multimodal.data.packing.tables.columnar import Embedded
from multimodal.data.packing.tables.named_files import is_file_name, note_no_file
from multimodal.data.packing.tables.reading import Reading, Row, Table
from multimodal.data.packing.tables.splits import split_named
from multimodal.data.packing.tables.values import is_caption_name, is_nothing
from multimodal.data.shards.formats import BY_EXTENSION, extension_of, is_media_name, sniff

_TRIED = 50  # paths by which their folder is found
_SAMPLE = 1000  # rows that the roles are inferred from
_SAMPLE_SIZE = 64 << 20  # characters in those rows; fewer rows of longer texts are enough
_MOSTLY = 0.9
_LARGEST = 1 << 30  # bytes of a value that is looked at
_LONG_LIST = 32  # numbers in a list that is not metadata any more
_URL_NAMES = ("url", "image_url", "audio_url", "video_url", "imageurl", "img_url", "link")
_SPLIT = "split"


@dataclass(frozen=True, slots=True)
class Roles:
    """What each column of a table is for.

    Attributes:
        files: columns of paths, URLs or files themselves.
        texts: columns of which every sample needs a text.
        metadata: all that go into the metadata, the texts among them.
        arrays: columns of numbers that become ``.npy`` members.
        split: the column that names the samples' splits; None if there is none.
        root: the folder that paths are relative to.
        plain_names: whether members are named without their column's ``file_name``.
    """

    files: tuple[str, ...]
    texts: tuple[str, ...]
    metadata: tuple[str, ...]
    arrays: tuple[str, ...]
    split: str | None
    root: Path
    plain_names: bool = False

    @property
    def what(self) -> str:
        """In words, for the user."""
        names = {"files": self.files, "texts": self.texts, "arrays": self.arrays}
        return "; ".join(f"{what}: {', '.join(each)}" for what, each in names.items() if each)


def find_roles(table: Table, reading: Reading, say: Say) -> Roles:
    """The roles of a table's columns: as the user says, else by what its first rows hold.

    Raises:
        ValueError: if a column that was named is not there, or nothing can be packed.
    """
    for column in reading.named_columns:
        if column not in table.columns:
            raise ValueError(
                f"{table.path} has no column {column!r}; {suggest(column, table.columns)}"
            )
    rows = first_rows(table, _SAMPLE)
    files = tuple(reading.files) or _files(table, rows)
    left_out = [
        c for c in table.columns if c not in files and _share(_values(rows, c), _is_binary) > 0
    ]
    if left_out and not reading.texts:
        say(f"left out: the columns of unknown bytes {', '.join(left_out)}")
    root = reading.root or find_root(
        [v for row in rows for column in files if isinstance(v := row.get(column), str)],
        table.path.parent,
    )
    if not reading.files and not reading.root:
        files = _found(files, rows, root)
    others = [c for c in table.columns if c not in files and c != reading.key]
    arrays = tuple(reading.arrays) or tuple(
        c for c in others if c not in reading.texts and _is_array(_values(rows, c))
    )
    split = _SPLIT if _SPLIT in others and _are_splits(_values(rows, _SPLIT)) else None
    if reading.texts or reading.optional:
        metadata = [*reading.texts, *reading.optional]
        texts = [c for c in reading.texts if not _are_numbers(table, rows, c)]
    else:
        metadata = [c for c in others if c not in arrays and c not in left_out]
        texts = _captions(table, rows, metadata)
    for column in metadata:
        _refuse_files(table, column, _values(rows, column))
        if not files and is_file_name(column) and column not in reading.named_columns:
            note_no_file(table.path, column, _values(rows, column)[:_TRIED], root, say)
    if not files and not texts and not arrays and not reading.named_columns:
        raise ValueError(
            f"{table.path}: none of the columns {', '.join(table.columns)} holds files or texts; "
            "name them (--files, --texts)"
        )
    return Roles(files, tuple(texts), tuple(metadata), arrays, split, root)


def names_files(table: Table, folder: Path) -> bool:
    """Whether a column of a table names files that are in a folder."""
    rows = first_rows(table, _TRIED)
    for column in table.columns:
        values = [v for v in _values(rows, column) if isinstance(v, str)]
        if _share(values, _is_media) >= _MOSTLY:
            root = find_root(values, folder)
            if any(_is_file(root / value) for value in values):
                return True
    return False


def find_root(paths: Sequence[str], folder: Path, beside: bool = False) -> Path:
    """The folder that most of these relative paths lead from.

    Args:
        paths: as a table has them.
        folder: the table's own, which is looked at first, then those in it.
        beside: looks in the folders beside it as well.
    """
    first = [path for path in paths if not is_url(path) and ".." not in path][:_TRIED]
    best, most = folder, 0
    for candidate in _near(folder, beside) if first else ():
        there = sum(_is_file(candidate / path) for path in first)
        if there > most:
            best, most = candidate, there
        if there == len(first):
            break
    return best


def _near(folder: Path, beside: bool) -> Iterable[Path]:
    yield folder
    for one in (inside := _folders(folder)):
        yield one
    for one in inside:
        yield from _folders(one)
    if beside:
        yield folder.parent
        yield from _folders(folder.parent)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text that is not a path at all
        return False


def first_rows(table: Table, count: int) -> list[dict[str, Any]]:
    """The values of the first rows: at least one, and no more than fit into `_SAMPLE_SIZE`."""
    rows: list[dict[str, Any]] = []
    size = 0
    for row in islice((row for row in table.rows() if isinstance(row, Row)), count):
        rows.append(row.values)
        size += sum(map(_length, row.values.values()))
        if size > _SAMPLE_SIZE:
            break
    return rows


def _length(value: Any) -> int:
    """Characters of a value, in lists and mappings too."""
    if isinstance(value, dict):
        return sum(map(_length, value.values()))
    if isinstance(value, list):
        return sum(map(_length, value))
    return len(value) if isinstance(value, (str, bytes)) else 1


def _values(rows: Sequence[dict[str, Any]], column: str) -> list[Any]:
    return [v for row in rows if not is_nothing(v := row.get(column))]


def _files(table: Table, rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Columns of files: inside of the table, by the extensions of paths, else of URLs."""
    embedded = tuple(
        c for c in table.columns if _share(_values(rows, c)[:_TRIED], _is_known) >= _MOSTLY
    )
    if embedded:
        return embedded
    # Of a column that is called so, values that name no file are refused one by one.
    named = [
        c
        for c in table.columns
        if (share := _share(_values(rows, c), _is_media)) >= _MOSTLY or (share and is_file_name(c))
    ]
    if named:
        return tuple(named)
    return tuple(
        c
        for c in table.columns
        if c.lower() in _URL_NAMES and _share(_values(rows, c), _is_address) >= _MOSTLY
    )[:1]


def _found(files: tuple[str, ...], rows: Sequence[dict[str, Any]], root: Path) -> tuple[str, ...]:
    """Those of inferred columns whose files are there, if any of them are; else all."""
    if len(files) < 2:
        return files
    held = [c for c in files if any(_is_there(v, root) for v in _values(rows, c)[:50])]
    local = [c for c in held if not all(_is_address(v) for v in _values(rows, c)[:50])]
    return tuple(local or held or files)


def _is_there(value: Any, root: Path) -> bool:
    if isinstance(value, str):
        return is_url(value) or _is_file(root / value)
    return True


def _is_media(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_media, value))
    return isinstance(value, str) and is_media_name(value.strip())


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and is_url(value.strip())


def _is_known(value: Any) -> bool:
    """Whether a value is a file of a known kind inside of the table, or a list of them."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_known, value))
    if not isinstance(value, Embedded):
        return False
    if value.content is None or extension_of(value.path or "") in BY_EXTENSION:
        return value.path is not None
    return sniff(value.content.read(_LARGEST)) is not None


def _is_binary(value: Any) -> bool:
    return isinstance(value, Embedded | bytes) or (
        isinstance(value, list) and any(map(_is_binary, value))
    )


def _is_array(values: Sequence[Any]) -> bool:
    """Whether a column holds lists of many numbers, of which nobody makes metadata."""
    return bool(values) and all(_count(value) > _LONG_LIST for value in values[:50])


def _count(value: Any) -> int:
    """How many numbers a nested list holds; 0 if it holds anything else."""
    if isinstance(value, bool) or not isinstance(value, list | int | float):
        return 0
    if not isinstance(value, list):
        return 1
    counts = [_count(each) for each in value]
    return sum(counts) if all(counts) else 0


def _are_splits(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(v, str) and split_named(v) for v in values)


def _are_numbers(table: Table, rows: Sequence[dict[str, Any]], column: str) -> bool:
    """Whether a column that was named as a text holds numbers, which may be metadata as well."""
    values = [v for row in rows if (v := row.get(column)) is not None]
    numbers = column in table.numbers and column not in table.class_names
    if not numbers and _share(values, _is_number) < _MOSTLY:
        return False
    if is_caption_name(column) and column not in table.class_names:
        example = excerpt(values[0]) if values else "null"
        raise ValueError(
            f"{table.path}: the column {column!r} holds numbers ({example}), not texts; make them "
            f"texts, or pack them as metadata (--optional {column})"
        )
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _captions(table: Table, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """The column of captions: by its name, else the one whose texts have most words."""
    for column in columns:
        if is_caption_name(column) and not _are_numbers(table, rows, column):
            return [column]
    words = {c: _words(_values(rows, c)) for c in columns}
    best = max(words, key=lambda c: words[c], default=None)
    return [best] if best is not None and words[best] >= 2 else []


def _words(values: Sequence[Any]) -> float:
    texts = [v for v in values if isinstance(v, str)]
    if len(texts) < len(values) or not texts:
        return 0.0
    return sum(len(text.split()) for text in texts) / len(texts)


def _refuse_files(table: Table, column: str, values: Sequence[Any]) -> None:
    if any(map(_is_binary, values)):
        raise ValueError(
            f"{table.path}: the column {column!r} holds files themselves, which are not text; "
            f"name it under --files"
        )


def _share(values: Sequence[Any], test: Any) -> float:
    return sum(map(test, values)) / len(values) if values else 0.0
