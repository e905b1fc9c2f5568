"""Writes tars and manifests: deterministic bytes, atomic writes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from multimodal.core.files import NewFile, write_text
from multimodal.data.shards.manifest import FORMAT, TABLE_SUFFIX, kind_of
from multimodal.data.shards.table import ShardRow, ShardTable

PACKED = "Finished shards are whole: the same command resumes with them"
_MOST_KEYS = 1000  # of a JSON member, in a manifest
MOST_LISTED = 10_000  # shards in a manifest itself


class ShardEntry(NamedTuple):
    """What a manifest says of one shard, and which members and JSON keys its samples have.

    Attributes:
        fields: the members that occur.
        keys: of each JSON member, how many of its objects have each key, with a value.
    """

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    fields: list[str]
    keys: dict[str, dict[str, int]]


class Extent(NamedTuple):
    """Size and hash of a written shard."""

    bytes: int
    sha256: str


class ShardWriter:
    """Writes one tar, sample by sample; it gets its name when it is complete.

    Equal samples give equal bytes: times, owners and modes are fixed.

    Args:
        path: of the shard.
    """

    def __init__(self, path: Path) -> None:
        self._digest = hashlib.sha256()
        self._file = NewFile(path, PACKED, hashed=self._digest)
        fileobj = cast("IO[bytes]", self._file)
        self._tar = tarfile.TarFile(fileobj=fileobj, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Appends one sample, its members in the order of their names."""
        for field, data in sorted(members.items()):
            info = tarfile.TarInfo(f"{key}.{field}")
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))

    def close(self) -> Extent:
        """Completes the shard and renames it to its final name."""
        self._tar.close()
        self._file.commit()
        return Extent(self._file.written, self._digest.hexdigest())

    def discard(self) -> None:
        """Leaves no trace of it, unless it is finished."""
        self._file.discard()


def count_keys(document: Any, counts: dict[str, int]) -> None:
    """Counts the keys of an object that have a value."""
    if isinstance(document, dict):
        for key, value in document.items():
            if value is not None:
                counts[key] = counts.get(key, 0) + 1


def _listed(shards: Sequence[ShardEntry]) -> list[dict[str, Any]]:
    names = ("name", "split", "samples", "bytes", "sha256")
    return [{name: getattr(shard, name) for name in names} for shard in shards]


def _saved(shards: Sequence[ShardEntry], folder: Path) -> dict[str, Any]:
    """The table in files beside the manifest, where a list would be long to read and to hold."""
    by_split: dict[str, list[ShardRow]] = {}
    for shard in shards:
        row = ShardRow(shard.name, shard.samples, shard.bytes, shard.sha256)
        by_split.setdefault(shard.split, []).append(row)
    return {split: ShardTable.of(rows).save(folder / split) for split, rows in by_split.items()}


def _keys(field: str, shards: Sequence[ShardEntry]) -> dict[str, Any]:
    """The keys of a JSON member, and how many samples have those that not all have."""
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update(shard.keys.get(field, {}))
    samples = sum(shard.samples for shard in shards)
    keys = dict(sorted(counts.most_common(_MOST_KEYS)))
    partial = {key: count for key, count in keys.items() if count < samples}
    return {"keys": list(keys)} | ({"partial": partial} if partial else {})


def write_manifest(
    path: Path,
    name: str,
    description: str,
    shards: Sequence[ShardEntry],
    kinds: Mapping[str, str],
    origin: str = "",
    licences: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Writes the manifest of ``shards``.

    Args:
        path: of the JSON file.
        name: of the source.
        description: one line about it.
        shards: in the order of the samples' indices.
        kinds: of members whose names do not imply their kind.
        origin: where the data come from.
        licences: of the parts.

    Returns:
        What was written.

    Raises:
        ValueError: if there are no shards or a member cannot be read by anything.
    """
    if not shards:
        raise ValueError("no shards: nothing was packed")
    splits = sorted({shard.split for shard in shards})
    fields: dict[str, dict[str, Any]] = {}
    for field in sorted({field for shard in shards for field in shard.fields}):
        entry: dict[str, Any] = {"kind": kind_of(field, kinds)}
        holders = sorted({shard.split for shard in shards if field in shard.fields})
        if holders != splits:
            entry["splits"] = holders
        if entry["kind"] == "json":
            entry.update(_keys(field, [s for s in shards if s.split in holders]))
        fields[field] = entry
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "description": description,
        "origin": origin,
        "licences": [dict(licence) for licence in licences],
        "fields": fields,
        "shards": _listed(shards)
        if len(shards) <= MOST_LISTED
        else _saved(shards, path.with_suffix(TABLE_SUFFIX)),
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    write_text(path, text, PACKED)
    return manifest
