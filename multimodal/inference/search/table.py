"""A table of embeddings on disk: Parquet, or ``.npy`` with its keys beside it.

One row per item and modality. It is written in parts beside its place, each in one step, and put
together at the end: an interrupted run resumes with the next part, to the same table.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from multimodal.core import strict_json
from multimodal.core.errors import UserError
from multimodal.core.extras import module_of
from multimodal.core.files import NewFile, write_text
from multimodal.core.strict_json import excerpt, is_text
from multimodal.data.parquet import open_parquet, refuse_repeats
from multimodal.inference.embedder import Embedder

Vectors = NDArray[np.float32]
# Media types of previews, sent unchanged.
PREVIEWS = ("", "image/webp", "image/svg+xml", "audio/flac", "text/plain")

COLUMNS = ("key", "modality", "name", "preview_type", "preview")
_PARTS = "Finished parts are whole: the same command resumes with them"
_NOTE = b"multimodal"  # of the Parquet file's metadata


class TableError(UserError, ValueError):
    """A file is not there, or is not a table of embeddings."""


class Row(NamedTuple):
    """The columns beside an embedding.

    Attributes:
        key: of the item in its input.
        modality: of what was embedded.
        name: what the item is called.
        preview_type: media type of ``preview``; empty without one.
        preview: the item as a small picture, sound or text.
    """

    key: str
    modality: str
    name: str
    preview_type: str = ""
    preview: bytes = b""


@dataclass(frozen=True, slots=True)
class Table:
    """Embeddings, their N rows, and the metadata of the table.

    Attributes:
        vectors: ``[N, D]`` float32; of tokens ``[S, D]``, those of one row after the other.
        rows: what each of the N is.
        about: kind, checkpoint and the like.
        offsets: ``[N + 1]`` int64, of tokens: row ``i`` has ``vectors[offsets[i]:offsets[i + 1]]``.
    """

    vectors: Vectors
    rows: list[Row]
    about: dict[str, Any]
    offsets: NDArray[np.int64] | None = None


class PartWriter:
    """Writes a table part by part.

    Args:
        output: ends in ``.parquet`` or ``.npy``.
        about: kind, checkpoint and the like; kept in the table.
        identity: of model, input and settings: parts of another identity are refused.

    Raises:
        ValueError: if given another extension, a table that is there already, or parts of other
            inputs.
    """

    def __init__(self, output: Path, about: dict[str, Any], identity: str) -> None:
        if output.suffix not in (".parquet", ".npy"):
            raise ValueError(f"output={output}: expected a name that ends in .parquet or .npy")
        if output.exists():
            raise ValueError(f"output={output} is there already: remove it, or name another")
        self.output = output
        self.about = about
        self.folder = output.with_name(f"{output.name}.parts")
        self.folder.mkdir(parents=True, exist_ok=True)
        plan = self.folder / "identity"
        digest = hashlib.sha256(identity.encode()).hexdigest()
        if plan.exists() and plan.read_text() != digest:
            raise ValueError(
                f"{self.folder} holds parts of another checkpoint, input or settings: repeat that "
                "command to finish them, or remove the folder"
            )
        write_text(plan, digest, _PARTS)

    def done(self, number: int) -> bool:
        """Whether a part is there."""
        return self._part(number).exists()

    def write(
        self,
        number: int,
        vectors: Vectors,
        rows: Sequence[Row],
        lengths: NDArray[np.int64] | None = None,
    ) -> None:
        """One part, whole or not at all; ``lengths`` of tokens: how many each row has."""
        with NewFile(self._part(number), _PARTS) as file:
            _write_part(file, vectors, rows, lengths)

    def finish(self, count: int) -> int:
        """Puts ``count`` parts together, removes them, and returns the number of rows."""
        parts = [self._part(number) for number in range(count)]
        join = _join_parquet if self.output.suffix == ".parquet" else _join_npy
        total = join(parts, self.output, self.about)
        shutil.rmtree(self.folder)
        return total

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:08d}.parquet"


def _arrow() -> Any:
    module_of("search", "pyarrow.parquet", "a table of embeddings")
    return module_of("search", "pyarrow", "a table of embeddings")


def _write_part(
    file: NewFile,
    vectors: Vectors,
    rows: Sequence[Row],
    lengths: NDArray[np.int64] | None = None,
) -> None:
    pa = _arrow()
    dim = vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    embeddings = pa.FixedSizeListArray.from_arrays(flat, dim)
    if lengths is not None:
        offsets = pa.array(np.concatenate([[0], lengths.cumsum()]), pa.int32())
        embeddings = pa.ListArray.from_arrays(offsets, embeddings)
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    table = pa.table(
        {
            **{name: pa.array(columns[name], pa.string()) for name in COLUMNS[:4]},
            "preview": pa.array(columns["preview"], pa.binary()),
            "embedding": embeddings,
        }
    )
    pa.parquet.write_table(table, pa.PythonFile(file, mode="w"))


def _join_parquet(parts: Sequence[Path], output: Path, about: dict[str, Any]) -> int:
    pa = _arrow()
    total = 0
    schema = pa.parquet.read_schema(parts[0]).with_metadata({_NOTE: json.dumps(about).encode()})
    with (
        NewFile(output, _PARTS) as file,
        pa.parquet.ParquetWriter(pa.PythonFile(file, mode="w"), schema) as writer,
    ):
        for part in parts:
            table = pa.parquet.read_table(part).replace_schema_metadata(schema.metadata)
            writer.write_table(table)
            total += table.num_rows
    return total


def _join_npy(parts: Sequence[Path], output: Path, about: dict[str, Any]) -> int:
    """Rows of numbers, and ``NAME.keys.csv`` beside them; the previews are left out."""
    tables = [_read_parquet(part) for part in parts]
    rows = [row for table in tables for row in table.rows]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS[:3])
    writer.writerows((row.key, row.modality, row.name) for row in rows)
    write_text(output.with_suffix(".keys.csv"), text.getvalue(), _PARTS)
    write_text(output.with_suffix(".about.json"), json.dumps(about), _PARTS)
    with NewFile(output, _PARTS) as file:
        np.save(cast("IO[bytes]", file), np.concatenate([table.vectors for table in tables]))
    return len(rows)


def read_table(path: Path, tokens: bool = False) -> Table:
    """A whole table.

    Args:
        path: of it.
        tokens: whether it holds embeddings of tokens.

    Raises:
        TableError: if it is not there, or is not a table of such embeddings.
        MissingExtraError: if what reads it is not installed.
    """
    if not path.exists():
        raise TableError.mistake(f"there is no table {path}: make one by scripts/embed.py")
    try:
        table = _read_npy(path) if path.suffix == ".npy" else _read_parquet(path)
    except UserError:
        raise
    except Exception as error:  # of damaged files, the readers raise all sorts of errors
        detail = f"{type(error).__name__}: {error}"
        raise TableError(f"{path} cannot be read as a table of embeddings: {detail}") from error
    if (table.offsets is not None) != tokens:
        kinds = ("one embedding of each input", "embeddings of tokens (similarity=maxsim)")
        raise TableError.mistake(
            f"{path} holds {kinds[not tokens]}, expected {kinds[tokens]}: it is of another model"
        )
    for number, row in enumerate(table.rows):
        good = all(is_text(cell) for cell in row[:4]) and isinstance(row.preview, bytes)
        if not good or row.preview_type not in PREVIEWS:
            raise TableError(f"{path}, row {number}: {excerpt(list(row[:4]))} is not a table's row")
    return table


def _read_npy(path: Path) -> Table:
    vectors = np.lib.format.open_memmap(path, "r")
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise TableError(f"{path} holds {vectors.dtype} of {list(vectors.shape)}, not rows")
    with path.with_suffix(".keys.csv").open(newline="") as file:
        rows = [Row(line["key"], line["modality"], line["name"]) for line in csv.DictReader(file)]
    about = strict_json.read(path.with_suffix(".about.json"))
    if len(vectors) != len(rows) or not isinstance(about, dict):
        raise TableError(f"{path} holds {list(vectors.shape)} numbers for {len(rows)} keys")
    return Table(np.array(vectors, np.float32), rows, about)


def _read_parquet(path: Path) -> Table:
    table = open_parquet(path, "search", "a table of embeddings").read()
    refuse_repeats(path, table)
    missing = [name for name in (*COLUMNS, "embedding") if name not in table.column_names]
    if missing:
        raise TableError(f"{path} is not a table of embeddings: it lacks {', '.join(missing)}")
    column = table.column("embedding").combine_chunks()
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    offsets = None
    if column.type.num_fields and not hasattr(column.type, "list_size"):  # of tokens
        lengths = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in chunks]
        offsets = np.concatenate([[0], np.concatenate(lengths).cumsum()]).astype(np.int64)
        chunks = [chunk.flatten() for chunk in chunks]
    dim = chunks[0].type.list_size if chunks else 0
    vectors = np.concatenate(
        [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim) for chunk in chunks]
        or [np.zeros((0, dim), np.float32)]
    )
    columns = [table.column(name).to_pylist() for name in COLUMNS]
    about = strict_json.parse((table.schema.metadata or {}).get(_NOTE, b"{}"), "its note")
    count = table.num_rows if offsets is None else int(offsets[-1])
    if not isinstance(about, dict) or column.null_count or len(vectors) != count:
        raise TableError(f"{path} is not a table of embeddings: it has gaps")
    rows = [Row(*cells) for cells in zip(*columns, strict=True)]
    return Table(vectors.astype(np.float32), rows, about, offsets)


def fitting(embedder: Embedder, table: Table) -> Embedder:
    """The embedder with the table's width: of its own ``dim``, or of a table that was cut.

    Raises:
        TableError: if the dimensions differ, or the table holds numbers that are not finite.
    """
    width, whole = table.vectors.shape[1], embedder.model.embed_dim
    if embedder.dim is None and width < whole and table.about.get("dim") == width:
        embedder = embedder.at(width)
    if width not in (embedder.embed_dim, whole):
        cut = f", cut to {embedder.dim}" if embedder.dim else ""
        raise TableError.mistake(
            f"the table holds embeddings of {width} dimensions, the checkpoint's model makes "
            f"{whole}{cut}: the table is of another model"
        )
    if not np.isfinite(table.vectors).all():
        raise TableError("the table holds NaN or infinity")
    return embedder


def about_of(checkpoint: str, digest: str, embedder: Embedder, given: str) -> dict[str, Any]:
    """A table's metadata."""
    dim = embedder.embed_dim
    about: dict[str, Any] = {"checkpoint": Path(checkpoint).name, "weights": digest}
    about |= {"kind": embedder.kind} | ({} if embedder.dim is None else {"dim": dim})
    return json.loads(json.dumps({**about, "input": given, "embed_dim": dim}))  # type: ignore[no-any-return]
