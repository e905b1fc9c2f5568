"""Sources that share keys, joined: the members of one manifest's samples beside another's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimodal.core.hashing import stable_hash
from multimodal.core.strict_json import excerpt
from multimodal.data.errors import DecodeError, ShardError
from multimodal.data.modality import METADATA
from multimodal.data.shards.manifest import Field, Manifest
from multimodal.data.shards.opening import ShardFiles, numbers_of
from multimodal.data.shards.table import ShardTable
from multimodal.data.shards.tar import Shard

SAMPLE_KEY = "__key__"  # joins by the samples' own names
_NO_VALUE = np.iinfo(np.int64).min
_AHEAD = 4  # remote shards that are fetched while one is read

Indices = NDArray[np.int64]


class JoinedSample:
    """A sample of one shard beside its partner of another: a ``ShardReader``.

    The JSON of both is one object; the first sample's values come before the partner's.
    """

    def __init__(self, own: Shard, other: Shard, other_place: int) -> None:
        self.path: Path = own.path
        self.keys = own.keys
        self._own = own
        self._other = other
        self._at = other_place

    def fields(self, index: int) -> list[str]:
        """Names of the members of both."""
        return list(dict.fromkeys([*self._own.fields(index), *self._other.fields(self._at)]))

    def size(self, index: int, field: str) -> int:
        """Bytes of one member; of JSON in both, together."""
        return sum(shard.size(place, field) for shard, place in self._holders(index, field))

    def read(self, index: int, field: str) -> bytes:
        """Content of one member."""
        contents = [shard.read(place, field) for shard, place in self._holders(index, field)]
        if len(contents) == 1:
            return contents[0]
        try:
            objects = [json.loads(content) for content in contents]
        except (ValueError, RecursionError) as error:
            raise DecodeError("corrupt", f"{field!r}: {error}") from error
        if not all(isinstance(each, dict) for each in objects):
            raise DecodeError("metadata", "expected a JSON object in both of the joined samples")
        return json.dumps(objects[1] | objects[0]).encode()

    def check(self, index: int) -> None:
        """Rejects a sample whose members, or its partner's, are ambiguous."""
        self._own.check(index)
        self._other.check(self._at)

    def _holders(self, index: int, field: str) -> list[tuple[Shard, int]]:
        both = ((self._own, index), (self._other, self._at))
        return [(shard, place) for shard, place in both if field in shard.fields(place)]


class Partner:
    """The other manifest's sample for each sample of a table.

    Args:
        files: the other manifest's shards.
        indices: for each sample of the first table, the other's index.
    """

    def __init__(self, files: ShardFiles, indices: Indices) -> None:
        self.files = files
        self.indices = indices

    def beside(self, shard: Shard, index: int) -> JoinedSample:
        """Sample ``index`` of the first table, whose shard is given, with its partner."""
        number, place = self.files.table.locate(int(self.indices[index]))
        return JoinedSample(shard, self.files.open(number), place)

    def fetch_ahead(self, indices: Iterable[int]) -> None:
        """Starts to fetch the shards of these samples' partners if they are remote."""
        self.files.fetch_ahead(numbers_of(self.files.table, (self.indices[i] for i in indices)))


def merged(first: Manifest, second: Manifest) -> Manifest:
    """A manifest of the members of both.

    Raises:
        ValueError: if both have a member other than the JSON.
    """
    shared = sorted(set(first.fields) & set(second.fields) - {METADATA})
    if shared:
        raise ValueError(
            f"{first.path} and {second.path} both have {', '.join(shared)}: a joined sample needs "
            "members of different names"
        )
    fields = dict(second.fields) | dict(first.fields)
    if METADATA in first.fields and METADATA in second.fields:
        known = [manifest.fields[METADATA].keys for manifest in (first, second)]
        both = tuple(dict.fromkeys(key for keys in known for key in keys))
        fields[METADATA] = Field("json", keys=both if all(known) else ())
    return replace(first, fields={name: replace(f, splits=None) for name, f in fields.items()})


def join(own: ShardFiles, other: ShardFiles, key: str) -> tuple[ShardTable, Indices]:
    """The first table's samples that have a partner, and of each its partner's index.

    Args:
        own: the first manifest's shards; only their headers are read, and the JSON where ``key``
            names a value of it. Remote ones are fetched whole.
        other: the other's.
        key: of the JSON values that must be equal; ``__key__``: the samples' names.

    Raises:
        ValueError: if a value occurs twice in the other one, nothing matches, or a shard cannot be
            read.
    """
    named = _name_of if key == SAMPLE_KEY else _value_of(key)
    ours, theirs = _hashes(own, named), _hashes(other, named)
    order = np.argsort(theirs, kind="stable")
    ranked = theirs[order]
    twice = (ranked[1:] == ranked[:-1]) & (ranked[1:] != _NO_VALUE)
    if twice.any():
        raise ValueError(
            f"join: {int(twice.sum())} values of {key!r} occur more than once in {other.folder}; "
            "each of its samples can be one partner"
        )
    at = np.minimum(np.searchsorted(ranked, ours), len(ranked) - 1)
    matched = (ranked[at] == ours) & (ours != _NO_VALUE)
    if not matched.any():
        raise ValueError(
            f"join: no {key!r} of {own.folder} is one of {other.folder}; the first are "
            f"{_first(own, named)} and {_first(other, named)}"
        )
    return own.table.select(matched), order[at][matched].astype(np.int64)


Named = Callable[[Shard, int], Any]


def _name_of(shard: Shard, place: int) -> Any:
    return shard.keys[place]


def _value_of(key: str) -> Named:
    def value(shard: Shard, place: int) -> Any:
        if METADATA not in shard.fields(place):
            return None
        try:
            content = json.loads(shard.read(place, METADATA))
        except (ValueError, RecursionError):  # bad when it is trained on
            return None
        return content.get(key) if isinstance(content, dict) else None

    return value


def _first(files: ShardFiles, named: Named) -> str:
    return excerpt(named(files.open(0), 0))


def _hashes(files: ShardFiles, named: Named) -> Indices:
    """A hash for each sample of the table, in its order."""
    hashes = np.empty(files.table.num_samples, np.int64)
    index = 0
    for number in range(len(files.table)):
        files.fetch_ahead(range(number + 1, min(number + _AHEAD, len(files.table))))
        try:
            shard = files.open(number)
        except ShardError as error:
            raise ValueError(f"join: {error}") from error
        for place in files.table.places_of(number):
            value = named(shard, int(place))
            hashes[index] = _NO_VALUE if value is None else stable_hash("join", repr(value))
            index += 1
    return hashes
