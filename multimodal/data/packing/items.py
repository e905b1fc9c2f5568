"""The samples to pack, from a folder, a table or other shards, one item each."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from multimodal.core.extras import module_of
from multimodal.core.strict_json import excerpt
from multimodal.core.suggest import suggest
from multimodal.data.errors import BadSampleError
from multimodal.data.parquet import open_parquet, rows_of
from multimodal.data.shards.tar import Shard

TABLES = (".csv", ".tsv", ".parquet", ".jsonl")


class InShard(NamedTuple):
    """A member of a shard: its sample's place there, and its field."""

    path: Path
    place: int
    field: str


class Refusal(NamedTuple):
    """A sample that is not packed, and why."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Item:
    """One sample to be packed.

    Attributes:
        key: its name.
        members: field -> the file, or the member of another shard, that holds its bytes.
        metadata: what goes into its ``json`` member besides what such a member has already.
        size: bytes of all members together, about.
    """

    key: str
    members: dict[str, Path | InShard]
    metadata: dict[str, Any] = field(default_factory=dict)
    size: int = 0

    def read(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Bytes of the members other than ``json``, and the metadata.

        Raises:
            OSError: if a file cannot be read.
            BadSampleError: if another shard cannot, or if ``json`` is not an object.
        """
        contents = {name: _read(where) for name, where in self.members.items()}
        text = contents.pop("json", None)
        if text is None:
            return contents, dict(self.metadata)
        try:
            metadata = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadSampleError("corrupt", f"'json' is not JSON: {error}") from error
        if not isinstance(metadata, dict):
            raise BadSampleError(
                "metadata", f"expected a JSON object, got {type(metadata).__name__}"
            )
        return contents, metadata | self.metadata


def items_of(
    source: Path,
    files: Sequence[str] = (),
    texts: Sequence[str] = (),
    key: str | None = None,
) -> Iterator[Item | Refusal]:
    """The samples of ``source`` in a fixed order, or why they are not samples.

    Args:
        source: a folder of files that share a stem (``a/photo1.jpg``, ``a/photo1.txt``); a table
            (CSV, TSV, Parquet, JSON lines) with columns of paths relative to it; or a folder of
            tars.
        files: of a table: the columns that hold paths. The member is named by column and
            extension, ``photo.jpg``; of several columns with one name each its own.
        texts: of a table: the columns that go into the metadata; all others if none is given.
        key: of a table: the column that names the samples; the row's number if None.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it is neither, if a table has no such column, or if options for a table are
            given for something else.
    """
    if not source.exists():
        raise FileNotFoundError(f"no {source}: expected a folder, a table or a folder of tars")
    if source.is_file():
        if source.suffix.lower() not in TABLES:
            raise ValueError(f"{source}: expected a folder or one of {', '.join(TABLES)}")
        yield from _table(source, files, texts, key)
        return
    if files or texts or key:
        raise ValueError(f"{source} is a folder: columns are for tables ({', '.join(TABLES)})")
    tars = sorted(source.glob("*.tar"))
    yield from _shards(tars) if tars else _folder(source)


def _folder(folder: Path) -> Iterator[Item | Refusal]:
    samples: dict[str, dict[str, Path | InShard]] = {}
    sizes: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir() or any(part.startswith(".") for part in name.parts):
            continue
        stem, _, member = path.name.partition(".")
        key = name.with_name(stem).as_posix()
        if not member:
            yield Refusal(name.as_posix(), "no_field", "a file without an extension")
            continue
        samples.setdefault(key, {})[member] = path
        sizes[key] = sizes.get(key, 0) + path.stat().st_size
    for key, members in samples.items():
        yield Item(key, members, {}, sizes[key])


def _shards(tars: Sequence[Path]) -> Iterator[Item | Refusal]:
    for path in tars:
        try:
            shard = Shard(path)
        except BadSampleError as error:
            yield Refusal(path.name, error.reason, str(error))
            continue
        for place, key in enumerate(shard.keys):
            try:
                shard.check(place)
            except BadSampleError as error:
                yield Refusal(key, error.reason, f"{path.name}: {error.detail}")
                continue
            names = shard.fields(place)
            size = sum(shard.size(place, name) for name in names)
            yield Item(key, {name: InShard(path, place, name) for name in names}, {}, size)


def _table(
    path: Path, files: Sequence[str], texts: Sequence[str], key: str | None
) -> Iterator[Item | Refusal]:
    for number, row in enumerate(_rows(path)):
        if number == 0:
            for column in (*files, *texts, *([key] if key else [])):
                if column not in row:
                    raise ValueError(f"{path} has no column {column!r}; {suggest(column, row)}")
            if not files and not texts:
                raise ValueError(f"{path}: name the columns of paths (files) or of texts (texts)")
        name = f"{number:09d}" if key is None else str(row[key])
        kept = texts or [c for c in row if c not in files and c != key]
        metadata = {c: row[c] for c in kept if row.get(c) not in (None, "")}
        members: dict[str, Path | InShard] = {}
        size = 0
        for column in kept:
            _refuse_bytes(path, column, row.get(column))
        for column in files:
            if row.get(column) in (None, ""):
                continue
            if not isinstance(row[column], str):
                _refuse_bytes(path, column, row[column])
                raise ValueError(
                    f"{path}: the column {column!r} was to hold paths, relative to the table; "
                    f"sample {name} has {excerpt(row[column])}"
                )
            file = path.parent / str(row[column])
            members[column + file.suffix.lower()] = file
            size += file.stat().st_size if file.is_file() else 0
        yield Item(name, members, metadata, size)


def _refuse_bytes(path: Path, column: str, value: Any) -> None:
    """What a table holds is read as paths and texts: files inside it are not taken."""
    parts = value.values() if isinstance(value, dict) else [value]
    if any(isinstance(part, bytes | bytearray) for part in parts):
        shape = f"blocks with the keys {', '.join(map(str, value))}" if len(parts) > 1 else "bytes"
        raise ValueError(
            f"{path}: the column {column!r} holds files themselves ({shape}), which are not read "
            "from a table: write each into a file, and its path into the column (--files)"
        )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _lines(path, file) if kind == ".jsonl" else _cells(path, file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8: {error}") from error


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    arrow = module_of("shards", "pyarrow", "a Parquet table")
    try:
        yield from rows_of(open_parquet(path, "shards", "a Parquet table"), path)
    except arrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error


def _lines(path: Path, file: TextIO) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object")
        yield row


def _cells(path: Path, file: TextIO) -> Iterator[dict[str, Any]]:
    comma = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(file, delimiter=comma, strict=True)
    try:
        header = reader.fieldnames or []
        others = [other for other in ";\t|," if len(header) == 1 and other in header[0]]
        if others:
            raise ValueError(
                f"{path} is separated by {others[0]!r}, expected {comma!r} as in every "
                f"{path.suffix}: save it so, or with tabs as .tsv"
            )
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{path}, line {reader.line_num}: more cells than the {len(header)} columns; "
                    f"a cell with {comma!r} in it has to be in quotes"
                )
            yield row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _read(where: Path | InShard) -> bytes:
    if isinstance(where, InShard):
        return _open(where.path).read(where.place, where.field)
    return where.read_bytes()


@lru_cache(maxsize=32)
def _open(path: Path) -> Shard:
    return Shard(path)
