"""Lengths of samples beside a manifest: sizes of pictures, bytes of texts.

Batches that are filled up to a number of tokens (``data.max_tokens``) need them before anything is
decoded. They stand in a folder beside the manifest, an array for each split and column, and name
the shards that they were read from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from multimodal.core.files import NewFile, write_text
from multimodal.data.shards.manifest import Manifest
from multimodal.data.shards.remote import is_remote
from multimodal.data.shards.table import ShardTable

SUFFIX = ".lengths"  # of the folder beside a manifest
_FORMAT = "multimodal-lengths/1"
_CONTENTS = "lengths.json"

Columns = Mapping[str, NDArray[np.int32]]


def column_of(member: str, key: str | None = None) -> str:
    """Name of the column of a member, or of the texts under a key of a JSON member."""
    return member if key is None else f"{member}:{key}"


def write_lengths(manifest: Manifest, splits: Mapping[str, Columns]) -> Path:
    """Writes the columns of every split: int32, ``[N, 2]`` height and width, or ``[N]`` bytes.

    Raises:
        ValueError: if the manifest is behind a URL.
    """
    folder = _folder(manifest)
    shutil.rmtree(folder, ignore_errors=True)
    contents: dict[str, Any] = {"format": _FORMAT, "splits": {}}
    for number, (split, columns) in enumerate(splits.items()):
        files = {name: f"{number}-{place}.npy" for place, name in enumerate(columns)}
        for name, file in files.items():
            with NewFile(folder / file) as opened:
                np.save(cast("IO[bytes]", opened), columns[name])
        shards = shards_digest(manifest.split(split))
        contents["splits"][split] = {"shards": shards, "columns": files}
    write_text(folder / _CONTENTS, json.dumps(contents, indent=1) + "\n")  # last: all are there
    return folder


def read_lengths(manifest: Manifest, splits: Sequence[str], column: str) -> NDArray[np.int32]:
    """One column of some splits, one after the other.

    Raises:
        ValueError: if they were never recorded, or of other shards; the message names the command.
    """
    remedy = f"record them: multimodal shards lengths {manifest.path}"
    path = _folder(manifest) / _CONTENTS
    if not path.is_file():
        raise ValueError(
            f"data.max_tokens needs the lengths of samples, and {path} is missing; {remedy}"
        )
    contents = json.loads(path.read_text())
    columns = []
    for split in splits:
        entry = contents.get("splits", {}).get(split, {})
        if entry.get("shards") != shards_digest(manifest.split(split)):
            raise ValueError(f"{path} is not of the shards of split {split!r}; {remedy}")
        if column not in entry["columns"]:
            known = ", ".join(entry["columns"])
            raise ValueError(f"{path} has no lengths of {column!r}, only of {known}; {remedy}")
        columns.append(np.load(path.parent / Path(entry["columns"][column]).name, mmap_mode="r"))
    return np.concatenate(columns) if len(columns) > 1 else columns[0]


def shards_digest(table: ShardTable) -> str:
    """Equal for tables of the same shards, of which the same samples are kept."""
    digest = hashlib.blake2b(digest_size=16)
    for column in (table.names, table.samples, table.sha256, table.kept):
        digest.update(b"" if column is None else np.asarray(column).tobytes())
    return digest.hexdigest()


def _folder(manifest: Manifest) -> Path:
    if isinstance(manifest.path, str) or is_remote(str(manifest.path)):
        raise ValueError(
            f"{manifest.path}: lengths stand beside a local manifest: copy it to a folder, with "
            "`base` for its shards, which may stay"
        )
    return manifest.path.with_suffix(SUFFIX)
