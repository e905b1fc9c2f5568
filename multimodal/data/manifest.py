"""The manifest beside a set of shards: what its samples hold, and how many there are where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from multimodal.data.columns import ShardRow, ShardTable, is_inside
from multimodal.data.paths import resolve
from multimodal.data.remote import is_remote, read_url

FORMAT = "multimodal-manifest/1"
TABLE_SUFFIX = ".table"  # of the folder beside a manifest that holds its shard table as files
KINDS = ("image", "video", "depth", "audio", "imu", "array", "text", "json")


_BY_EXTENSION = {
    **dict.fromkeys(("png", "jpg", "jpeg", "webp", "gif"), "image"),
    **dict.fromkeys(("ogg", "wav", "flac"), "audio"),
    **dict.fromkeys(("mp4", "webm", "mkv", "avi", "mov"), "video"),
    "npy": "array",
    "txt": "text",
    "json": "json",
}


@dataclass(frozen=True, slots=True)
class Field:
    """What the manifest says of one kind of member.

    Attributes:
        kind: what it holds, one of ``KINDS``.
        splits: the splits whose samples have it; None for all.
        keys: for ``json``, the keys that can be relied on; empty when not said.
    """

    kind: str
    splits: tuple[str, ...] | None = None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """One source's manifest.

    Attributes:
        path: where it was read from: a local path, or a URL; shards lie in the same folder.
        name: name of the source.
        description: one line about it.
        fields: what each member holds.
        splits: the shards of each split.
        licences: where the parts come from and under which terms.
        base: folder or URL that the shards' names are relative to; None for the manifest's own.
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
        """What the shards' names are relative to: a local folder, or a URL."""
        if self.base is not None:
            return self.base.rstrip("/")
        return (
            str(self.path).rpartition("/")[0]
            if isinstance(self.path, str)
            else str(self.path.parent)
        )

    def split(self, *names: str) -> ShardTable:
        """The shards of a split, or of several, one after the other.

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
    first, _, rest = field.partition(".")
    if rest and first in KINDS:
        return first
    extension = field.rpartition(".")[2].lower()
    if extension not in _BY_EXTENSION:
        raise ValueError(
            f"member {field!r}: no decoder for .{extension}; there are: {', '.join(_BY_EXTENSION)}"
        )
    return _BY_EXTENSION[extension]


def suggest(given: str, names: Iterable[str]) -> str:
    """The end of an error message: the nearest name, or all that there are."""
    names = sorted(names)
    near = get_close_matches(given, names, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}"


def load_manifest(path: str | Path) -> Manifest:
    """Reads and validates a manifest.

    Args:
        path: a JSON file; ``samples://NAME`` for one of the sample corpus; a URL that fsspec knows.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a manifest, listing every fault that was found.
    """
    file = str(path) if is_remote(str(path)) else resolve(path)
    try:
        content = json.loads(_content(path))
    except ValueError as error:
        raise ValueError(f"the manifest {path} is not JSON: {error}") from error
    faults = _faults(content)
    if faults:
        shown = faults[:10] + ([f"and {len(faults) - 10} more"] if len(faults) > 10 else [])
        raise ValueError("\n  - ".join([f"the manifest {path} has faults:", *shown]))
    return Manifest(
        path=file,
        name=content["name"],
        description=content.get("description", ""),
        fields={
            name: Field(
                kind=field["kind"],
                splits=tuple(field["splits"]) if "splits" in field else None,
                keys=tuple(field.get("keys", ())),
            )
            for name, field in content["fields"].items()
        },
        splits=_tables(file, content["shards"]),
        licences=tuple(content.get("licences", ())),
        base=content.get("base"),
    )


def _tables(file: str | Path, shards: Any) -> dict[str, ShardTable]:
    """The shards by split: listed in the manifest, or mapped from the files that it names."""
    if isinstance(shards, dict):
        if isinstance(file, str):
            raise ValueError(
                f"the manifest {file} keeps its shard table in files beside it ({TABLE_SUFFIX}): "
                "copy both to a local folder, the shards may stay (see `base`)"
            )
        folder = file.with_suffix(TABLE_SUFFIX)
        return {
            split: ShardTable.mapped(folder / split, columns) for split, columns in shards.items()
        }
    by_split: dict[str, list[ShardRow]] = {}
    for shard in shards:
        row = ShardRow(shard["name"], shard["samples"], shard["bytes"], shard["sha256"])
        by_split.setdefault(shard["split"], []).append(row)
    return {split: ShardTable.of(rows) for split, rows in by_split.items()}


def manifest_hash(path: str | Path) -> str:
    """SHA-256 of a manifest, which names its shards' hashes: equal only for equal data."""
    return hashlib.sha256(_content(path)).hexdigest()


def _content(path: str | Path) -> bytes:
    if is_remote(str(path)):
        return read_url(str(path))
    file = resolve(path)
    if not file.is_file():
        raise FileNotFoundError(f"no manifest {path} (looked at {file})")
    return file.read_bytes()


def _faults(content: Any) -> list[str]:
    if not isinstance(content, dict):
        return [f"expected a JSON object, got {type(content).__name__}"]
    if content.get("format") != FORMAT:
        return [f"'format' must be {FORMAT!r}, got {content.get('format')!r}"]
    faults = []
    if not isinstance(content.get("name"), str) or not content["name"]:
        faults.append("'name' must be a text")
    if not isinstance(content.get("base", ""), str):
        faults.append("'base' must be a folder or a URL")
    fields, shards = content.get("fields"), content.get("shards")
    if not isinstance(fields, dict) or not fields:
        faults.append("'fields' must be an object with an entry for each member")
    else:
        faults += [fault for name, field in fields.items() for fault in _field_faults(name, field)]
    if isinstance(shards, dict) and shards:
        faults += [
            f"'shards' of split {split!r} must name the files of its columns"
            for split, columns in shards.items()
            if not is_inside(split) or not isinstance(columns, dict)
        ]
    elif not isinstance(shards, list) or not shards:
        faults.append("'shards' must be a list with at least one shard")
    else:
        faults += [
            fault for place, shard in enumerate(shards) for fault in _shard_faults(place, shard)
        ]
        names = [shard.get("name") for shard in shards if isinstance(shard, dict)]
        if len({str(name) for name in names}) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            faults.append(f"the shard {twice!r} is listed twice")
    return faults


def _field_faults(name: str, field: Any) -> list[str]:
    if not isinstance(field, dict) or field.get("kind") not in KINDS:
        return [f"field {name!r}: 'kind' must be one of {', '.join(KINDS)}"]
    return [
        f"field {name!r}: {key!r} must be a list of texts"
        for key in ("splits", "keys")
        if key in field and not _texts(field[key])
    ]


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _shard_faults(place: int, shard: Any) -> list[str]:
    if not isinstance(shard, dict):
        return [f"shard {place}: expected an object, got {shard!r}"]
    name = shard.get("name")
    label = f"shard {place} ({name!r})"
    faults = []
    if not isinstance(name, str) or not name:
        faults.append(f"{label}: 'name' must be a file name")
    elif not is_inside(name):
        faults.append(f"{label}: 'name' must be a path within the manifest's folder")
    if not isinstance(shard.get("split"), str) or not shard["split"]:
        faults.append(f"{label}: 'split' must be a text")
    for key in ("samples", "bytes"):
        value = shard.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            faults.append(f"{label}: {key!r} must be a whole number above 0, got {value!r}")
    digest = shard.get("sha256")
    if not isinstance(digest, str) or not _is_sha256(digest):
        faults.append(f"{label}: 'sha256' must be 64 hexadecimal digits, got {digest!r}")
    return faults


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
