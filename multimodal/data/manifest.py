"""The manifest beside a set of shards: what its samples hold, and how many there are where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimodal.data.paths import resolve

FORMAT = "multimodal-manifest/1"
KINDS = ("image", "depth", "audio", "imu", "array", "text", "json")


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
class ShardTable:
    """The shards of one split, as columns of length S, so that millions of them stay small.

    Attributes:
        names: UTF-8 bytes, relative to the manifest's folder.
        samples: int64, samples in each shard.
        bytes: int64, size of each shard's file.
        sha256: ``[S, 32]`` uint8.
        starts: ``[S + 1]`` int64, index of each shard's first sample, then the number of samples.
    """

    names: NDArray[np.bytes_]
    samples: NDArray[np.int64]
    bytes: NDArray[np.int64]
    sha256: NDArray[np.uint8]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, shards: list[dict[str, Any]]) -> ShardTable:
        """The table of validated manifest entries."""
        samples = np.array([shard["samples"] for shard in shards], np.int64)
        digests = b"".join(bytes.fromhex(shard["sha256"]) for shard in shards)
        return cls(
            names=np.array([shard["name"].encode() for shard in shards]),
            samples=samples,
            bytes=np.array([shard["bytes"] for shard in shards], np.int64),
            sha256=np.frombuffer(digests, np.uint8).reshape(len(shards), 32),
            starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(samples)]),
        )

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def num_samples(self) -> int:
        """Samples in all shards together."""
        return int(self.starts[-1])

    def name(self, shard: int) -> str:
        """File name of a shard, relative to the manifest's folder."""
        return bytes(self.names[shard]).decode()

    def locate(self, index: int) -> tuple[int, int]:
        """The shard that holds sample ``index``, and the sample's place in it.

        Raises:
            IndexError: if ``index`` is not in [0, num_samples).
        """
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return shard, index - int(self.starts[shard])


@dataclass(frozen=True, slots=True)
class Manifest:
    """One source's manifest.

    Attributes:
        path: where it was read from; shards lie in the same folder.
        name: name of the source.
        description: one line about it.
        fields: what each member holds.
        splits: the shards of each split.
        licences: where the parts come from and under which terms.
    """

    path: Path
    name: str
    description: str
    fields: dict[str, Field]
    splits: dict[str, ShardTable]
    licences: tuple[dict[str, Any], ...] = ()

    def split(self, name: str) -> ShardTable:
        """The shards of split ``name``.

        Raises:
            ValueError: if there is no such split.
        """
        if name not in self.splits:
            raise ValueError(f"{self.path} has no split {name!r}; {suggest(name, self.splits)}")
        return self.splits[name]

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


def suggest(given: str, names: Iterable[str]) -> str:
    """The end of an error message: the nearest name, or all that there are."""
    names = sorted(names)
    near = get_close_matches(given, names, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}"


def load_manifest(path: str | Path) -> Manifest:
    """Reads and validates a manifest.

    Args:
        path: a JSON file; ``samples://NAME`` for one of the sample corpus.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a manifest, listing every fault that was found.
    """
    file = resolve(path)
    if not file.is_file():
        raise FileNotFoundError(f"no manifest {path} (looked at {file})")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"the manifest {path} is not JSON: {error}") from error
    faults = _faults(content)
    if faults:
        shown = faults[:10] + ([f"and {len(faults) - 10} more"] if len(faults) > 10 else [])
        raise ValueError("\n  - ".join([f"the manifest {path} has faults:", *shown]))
    by_split: dict[str, list[dict[str, Any]]] = {}
    for shard in content["shards"]:
        by_split.setdefault(shard["split"], []).append(shard)
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
        splits={split: ShardTable.of(shards) for split, shards in by_split.items()},
        licences=tuple(content.get("licences", ())),
    )


def manifest_hash(path: str | Path) -> str:
    """SHA-256 of a manifest, which names its shards' hashes: equal only for equal data."""
    return hashlib.sha256(resolve(path).read_bytes()).hexdigest()


def _faults(content: Any) -> list[str]:
    if not isinstance(content, dict):
        return [f"expected a JSON object, got {type(content).__name__}"]
    if content.get("format") != FORMAT:
        return [f"'format' must be {FORMAT!r}, got {content.get('format')!r}"]
    faults = []
    if not isinstance(content.get("name"), str) or not content["name"]:
        faults.append("'name' must be a text")
    fields, shards = content.get("fields"), content.get("shards")
    if not isinstance(fields, dict) or not fields:
        faults.append("'fields' must be an object with an entry for each member")
    else:
        faults += [fault for name, field in fields.items() for fault in _field_faults(name, field)]
    if not isinstance(shards, list) or not shards:
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
    elif name.startswith("/") or ".." in name.split("/") or set(name) & set(":\\\0"):
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
