"""The manifest beside a set of shards: the content of its samples and their number per shard."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multimodal.core import strict_json
from multimodal.core.suggest import suggest
from multimodal.data.shards.formats import BY_EXTENSION, KINDS, kind_in_name
from multimodal.data.shards.manifest_errors import FORMAT, check_manifest
from multimodal.data.shards.paths import resolve
from multimodal.data.shards.remote import is_remote, list_url, read_url
from multimodal.data.shards.table import ShardRow, ShardTable

__all__ = ["FORMAT", "KINDS", "TABLE_SUFFIX", "Field", "Manifest", "kind_of", "load_manifest"]

_HEAD = 4096  # bytes in which a manifest says what it is
TABLE_SUFFIX = ".table"  # of the folder beside a manifest that holds its shard table as files


@dataclass(frozen=True, slots=True)
class Field:
    """What the manifest says of one kind of member.

    Attributes:
        kind: what it holds, one of ``KINDS``.
        splits: the splits whose samples have it; None for all.
        keys: for ``json``, the keys that there are; empty when not said.
        partial: how many samples have those of the keys that not all have.
    """

    kind: str
    splits: tuple[str, ...] | None = None
    keys: tuple[str, ...] = ()
    partial: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One source's manifest.

    Attributes:
        path: where it was read from: a local path, or a URL; shards are in the same folder.
        name: name of the source.
        description: one line about it.
        fields: what each member holds.
        splits: the shards of each split.
        licences: where the parts come from and under which terms.
        base: folder or URL that the shards' names are relative to; None for the manifest's own,
            to which a relative folder is relative.
    """

    path: Path | str
    name: str
    description: str
    fields: dict[str, Field]
    splits: dict[str, ShardTable]
    licences: tuple[dict[str, Any], ...] = ()
    base: str | None = None

    @property
    def folder(self) -> str:
        """The folder or URL that the shards' names are relative to; no slash at a URL's end."""
        if self.base is not None and is_remote(self.base):
            return self.base.rstrip("/")
        if isinstance(self.path, Path):
            return str(self.path.parent / (self.base or ""))
        own = self.path.rpartition("/")[0]
        return own if self.base is None else f"{own}/{self.base}"

    def split(self, *names: str) -> ShardTable:
        """The shards of one split, or of several in order.

        Raises:
            ValueError: if there is no such split, or none is named.
        """
        if not names:
            raise ValueError(f"no split of {self.path} is named; {suggest('', self.splits)}")
        for name in names:
            if name not in self.splits:
                raise ValueError(f"{self.path} has no split {name!r}; {suggest(name, self.splits)}")
        return ShardTable.joined([self.splits[name] for name in names])

    def field(self, member: str, split: str) -> Field:
        """What member ``member`` holds in the samples of ``split``.

        Raises:
            ValueError: if the manifest lists no such member, or not for this split.
        """
        if member not in self.fields:
            raise ValueError(
                f"{self.path} lists no member {member!r}; {suggest(member, self.fields)}"
            )
        field = self.fields[member]
        if field.splits is not None and split not in field.splits:
            raise ValueError(
                f"{self.path}: member {member!r} is in the split {' and '.join(field.splits)}, "
                f"not in {split!r}"
            )
        return field


def kind_of(field: str, kinds: Mapping[str, str]) -> str:
    """What a member holds: as given, by its first part (``depth.png``), or by its extension.

    Raises:
        ValueError: if nothing can read such a member.
    """
    if field in kinds:
        return kinds[field]
    kind = kind_in_name(field)
    if kind is None:
        extension = field.rpartition(".")[2].lower()
        raise ValueError(
            f"member {field!r}: no decoder for .{extension}; there are: {', '.join(BY_EXTENSION)}"
        )
    return kind


def load_manifest(path: str | Path) -> Manifest:
    """Reads and validates a manifest.

    Args:
        path: a JSON file; ``samples://NAME`` for one of the sample corpus; a URL that fsspec knows.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a valid manifest; the message lists every error.
    """
    file = str(path) if is_remote(str(path)) else resolve(path)
    content = strict_json.parse(content_of(path), f"the manifest {path}")
    check_manifest(content, f"the manifest {path}")
    return Manifest(
        path=file,
        name=content["name"],
        description=content.get("description", ""),
        fields={
            name: Field(
                kind=entry["kind"],
                splits=tuple(entry["splits"]) if "splits" in entry else None,
                keys=tuple(entry.get("keys", ())),
                partial=entry.get("partial", {}),
            )
            for name, entry in content["fields"].items()
        },
        splits=_tables(file, content["shards"]),
        licences=tuple(content.get("licences", ())),
        base=content.get("base"),
    )


def manifests_in(given: str) -> list[str]:
    """The manifests that a user names: one, or all of a folder's; either may be a URL.

    Raises:
        OSError: if a URL cannot be read.
    """
    if is_remote(given):
        if given.endswith(".json"):
            return [given]
        paths = list_url(given, ".json")
    elif (folder := Path(given).expanduser()).is_dir():
        paths = [str(path) for path in sorted(folder.glob("*.json"))]
    else:
        return [given]
    heads = ((p, read_url(p, _HEAD) if is_remote(p) else _head(Path(p))) for p in paths)
    return [path for path, head in heads if b'"multimodal-manifest/' in head]


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _tables(file: str | Path, shards: Any) -> dict[str, ShardTable]:
    """The shards by split: listed in the manifest, or mapped from the files that it names."""
    if isinstance(shards, dict):
        if isinstance(file, str):
            raise ValueError(
                f"the manifest {file} keeps its shard table in files beside it ({TABLE_SUFFIX}): "
                "copy both to a local folder, the shards may stay (see `base`)"
            )
        folder = file.with_suffix(TABLE_SUFFIX)
        try:
            return {split: ShardTable.mapped(folder / split, c) for split, c in shards.items()}
        except ValueError as error:
            raise ValueError(f"the manifest {file}: {error}") from error
    by_split: dict[str, list[ShardRow]] = {}
    for shard in shards:
        row = ShardRow(
            shard["name"], shard["samples"], shard["bytes"], shard["sha256"], shard.get("kept")
        )
        by_split.setdefault(shard["split"], []).append(row)
    try:
        return {split: ShardTable.of(rows) for split, rows in by_split.items()}
    except ValueError as error:
        raise ValueError(f"the manifest {file}: {error}") from error


def manifest_hash(path: str | Path | Sequence[str]) -> str:
    """SHA-256 of a manifest, which names its shards' hashes: equal only for equal data.

    Of several, which a source joins, of all of them.
    """
    if not isinstance(path, str | Path):
        return hashlib.sha256("".join(map(manifest_hash, path)).encode()).hexdigest()
    return hashlib.sha256(content_of(path)).hexdigest()


def content_of(path: str | Path) -> bytes:
    """The bytes of a manifest, at most one more than may be parsed.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if a URL cannot be read.
    """
    limit = strict_json.MAX_BYTES
    if is_remote(str(path)):
        return read_url(str(path), limit + 1)
    file = resolve(path)
    if not file.is_file():
        raise FileNotFoundError(f"no manifest {path} (looked at {file})")
    with file.open("rb") as opened:
        return opened.read(limit + 1)
