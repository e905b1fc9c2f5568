"""A set of samples: which members of which shards make up which modality."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from multimodal.data.captions import Template
from multimodal.data.decode import Least, Limits, Signal, Value, decode
from multimodal.data.draw import Draw
from multimodal.data.errors import BadSample, DecodeError, ShardError
from multimodal.data.frozen import FrozenEmbeddings
from multimodal.data.lru import LRU
from multimodal.data.manifest import Manifest, load_manifest, suggest
from multimodal.data.remote import DEFAULT_FOLDER, RemoteShard, ShardCache, is_remote
from multimodal.data.shards import Shard
from multimodal.hashing import stable_hash

_OPEN_SHARDS = 32  # kept mapped in each process
_LOOK_AGAIN = 60.0  # seconds until a shard that could not be read is tried once more
_DEFAULT_BYTES = 100 << 30  # of remote shards in the cache
_METADATA = "json"  # the member that describes a sample
_ENTRY = ("member", "key", "template")  # what a modality may be given

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RawSample:
    """A sample as it lies in its shard.

    Attributes:
        key: its name in the shard.
        members: field -> bytes.
        metadata: content of its ``json`` member; empty where there is none.
    """

    key: str
    members: dict[str, bytes]
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sample before its transforms.

    Attributes:
        key: its name in the shard.
        values: modality -> picture or array, ``Signal`` (sounds, motion), or text.
        metadata: content of its ``json`` member; empty where there is none.
        sample_id: 64-bit hash of source, shard and key.
        positive_key: 64-bit hash of what makes samples positives of each other.
    """

    key: str
    values: dict[str, Value]
    metadata: dict[str, Any]
    sample_id: int
    positive_key: int


class Place(NamedTuple):
    """Where a sample lies, for messages."""

    shard: str
    key: str


class _Modality(NamedTuple):
    members: tuple[str, ...]
    key: str | None  # of a JSON member's object
    templates: tuple[Template, ...]  # over that object's keys
    is_motion: bool


def decoded_cache(megabytes: int) -> LRU[tuple[str, int, str], Any]:
    """A cache of decoded members: (path of the shard, place in it, member) -> value."""
    return LRU(megabytes << 20, cost=_bytes)


def _bytes(value: Any) -> int:
    if isinstance(value, Signal):
        return value.samples.nbytes
    return value.nbytes if isinstance(value, np.ndarray) else 100 + len(str(value))


class Source:
    """The samples of one split of a manifest, by index.

    Args:
        manifest: path or URL of the manifest; ``samples://NAME.json`` for one of the sample corpus.
        modalities: for each modality the ``member`` that holds it, or several of which one is
            drawn; for a JSON member also the ``key`` of a text in it, or of a list of texts of
            which one is drawn, or else a ``template`` (``{name}, {tags}``, see ``Template``), or
            several of which one is drawn.
        split: the manifest's split.
        positive_key: JSON key whose equal values make samples positives of each other, also across
            sources; None if a sample is only its own.
        batch_size: per device; None for ``data.batch_size``.
        repeat: how many times an epoch draws each sample.
        weight: share of an epoch's batches; the alternative to ``repeat``.

    Attributes:
        name: what the source is called in logs and seeds; the manifest's name until the data
            module gives it its own.
        limits: sizes that are decoded.
        verify: whether a shard's hash is held against the manifest when it is first opened.
        remote: cache of the shards, where the manifest is behind a URL; None where it is local.
        frozen: modality -> embeddings of its frozen tower, which training reads in its place.
        cache: decoded members, of this source and of those it shares the cache with.

    Raises:
        FileNotFoundError: if there is no such manifest.
        ValueError: if the manifest is faulty, or lacks the split, a member or a key.
    """

    def __init__(
        self,
        manifest: str,
        modalities: dict[str, dict[str, Any]],
        split: str = "train",
        positive_key: str | None = None,
        batch_size: int | None = None,
        repeat: float = 1.0,
        weight: float | None = None,
    ) -> None:
        loaded = load_manifest(manifest)
        if not modalities:
            raise ValueError(f"the source of {manifest} has no modalities")
        self.table = loaded.split(split)
        self.name = loaded.name
        self.limits = Limits()
        self.verify = True
        self.frozen: dict[str, FrozenEmbeddings] = {}
        self._verified: set[int] = set()  # shards whose hash was right
        self._broken: dict[int, tuple[float, ShardError]] = {}  # when to look again, what was wrong
        self.cache = decoded_cache(0)
        self.split = split
        self.positive_key = positive_key
        self.batch_size = batch_size
        self.repeat = repeat
        self.weight = weight
        if positive_key is not None:
            _check_key(loaded, split, _METADATA, positive_key)
        self._modalities = {
            name: _parse(name, entry, loaded, split) for name, entry in modalities.items()
        }
        self._folder = loaded.folder
        self.remote: ShardCache | None = None
        if is_remote(self._folder):
            self.remote = ShardCache(DEFAULT_FOLDER, _DEFAULT_BYTES)
        self._shards: LRU[int, Shard] = LRU(_OPEN_SHARDS)

    def __len__(self) -> int:
        return self.table.num_samples

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities of every sample."""
        return tuple(self._modalities)

    @cached_property
    def digest(self) -> str:
        """Equal for sources with the same shards in the same order."""
        found = hashlib.blake2b(digest_size=8)
        for column in (self.table.names, self.table.samples, self.table.sha256):
            found.update(column.tobytes())
        return found.hexdigest()

    def entry(self, modality: str) -> str:
        """Where a modality is read from, in words that are equal for equal entries."""
        members, key, templates, _ = self._modalities[modality]
        return repr((members, key, [template.text for template in templates]))

    def is_random(self, modality: str) -> bool:
        """Whether training may draw one of several values of a modality."""
        members, key, templates, _ = self._modalities[modality]
        return len(members) > 1 or key is not None or bool(templates)

    def read(self, index: int) -> RawSample:
        """A sample as it lies in its shard.

        Raises:
            IndexError: if ``index`` is not in [0, len(self)).
            ShardError: if its shard cannot be read.
            DecodeError: if its metadata cannot.
        """
        shard, place = self._locate(index)
        shard.check(place)
        members = {field: shard.read(place, field) for field in shard.fields(place)}
        return RawSample(shard.keys[place], members, self._metadata(shard, place))

    def decode(
        self,
        index: int,
        draw: Draw | None,
        modalities: Collection[str] | None = None,
        least: Mapping[str, Least] | None = None,
    ) -> Decoded:
        """A sample's values, before their transforms.

        Args:
            index: of the sample.
            draw: chooses among several members and texts; None for the first of each.
            modalities: those wanted; None for all.
            least: of the modalities whose pictures may come smaller, how small.

        Raises:
            IndexError: if ``index`` is not in [0, len(self)).
            ShardError: if its shard cannot be read.
            DecodeError: if something of it is missing, corrupt or too large.
        """
        shard, place = self._locate(index)
        shard.check(place)
        metadata = self._metadata(shard, place)
        values = {
            name: self._value(name, modality, shard, place, metadata, draw, (least or {}).get(name))
            for name, modality in self._modalities.items()
            if modalities is None or name in modalities
        }
        key = shard.keys[place]
        shard_name = Path(self.table.name(self.table.locate(index)[0])).name
        sample_id = stable_hash(self.name, shard_name, key)
        positive = sample_id
        if self.positive_key is not None:
            positive = stable_hash(self.positive_key, repr(_get(metadata, self.positive_key)))
        return Decoded(key, values, metadata, sample_id, positive)

    def place(self, index: int) -> Place:
        """Where a sample lies, for messages; its key is unknown while its shard is unreadable."""
        name = self.table.name(self.table.locate(index)[0])
        try:
            shard, place = self._locate(index)
        except BadSample:
            return Place(name, f"sample {index}")
        return Place(name, shard.keys[place])

    def fetch_ahead(self, indices: Iterable[int]) -> None:
        """Begins to fetch the shards of these samples, where they are remote."""
        if self.remote is not None:
            places = np.fromiter(indices, np.int64)
            numbers = np.unique(np.searchsorted(self.table.starts, places, side="right") - 1)
            self.remote.fetch_ahead(self._remote_shard(int(number)) for number in numbers)

    def _remote_shard(self, number: int) -> RemoteShard:
        return RemoteShard(
            f"{self._folder}/{self.table.name(number)}",
            int(self.table.bytes[number]),
            self.table.sha256[number].tobytes(),
        )

    def after(self, index: int, whole_shard: bool) -> int:
        """The next sample, or the first of the next shard; after the last comes the first."""
        following = index + 1
        if whole_shard:
            following = int(self.table.starts[self.table.locate(index)[0] + 1])
        return following % len(self)

    def _locate(self, index: int) -> tuple[Shard, int]:
        number, place = self.table.locate(index)
        return self._shards.get(number, self._open), place

    def _open(self, number: int) -> Shard:
        # Each sample of a broken shard asks for it: look at the file again only after a while.
        if number in self._broken and time.monotonic() < self._broken[number][0]:
            raise self._broken[number][1]
        # What was fetched was verified on its way.
        verify = self.verify and self.remote is None and number not in self._verified

        def opened(path: Path) -> Shard:
            return Shard(
                path,
                samples=int(self.table.samples[number]),
                size=int(self.table.bytes[number]),
                sha256=self.table.sha256[number].tobytes() if verify else None,
            )

        try:
            if self.remote is None:
                shard = opened(Path(self._folder) / self.table.name(number))
            else:
                shard = self.remote.open(self._remote_shard(number), opened)
        except ShardError as error:
            self._broken[number] = (time.monotonic() + _LOOK_AGAIN, error)
            raise
        if verify:
            self._verified.add(number)
        return shard

    def _metadata(self, shard: Shard, place: int) -> dict[str, Any]:
        if _METADATA not in shard.fields(place):
            return {}
        metadata = self._decode(shard, place, _METADATA)
        if not isinstance(metadata, dict):
            raise DecodeError("metadata", f"expected a JSON object, got {type(metadata).__name__}")
        return metadata

    def _value(
        self,
        name: str,
        modality: _Modality,
        shard: Shard,
        place: int,
        metadata: dict[str, Any],
        draw: Draw | None,
        least: Least | None,
    ) -> Value:
        fields = shard.fields(place)
        present = [member for member in modality.members if member in fields]
        if not present:
            raise DecodeError("missing", f"{name} needs {' or '.join(modality.members)}")
        member = _choose(present, draw, f"{name}.member")
        if member == _METADATA:
            value: Any = metadata
        elif least is not None:  # smaller for each draw: not to be kept
            value = self._decode(shard, place, member, least)
        else:
            key = (str(shard.path), place, member)
            value = self.cache.get(key, lambda _: self._decode(shard, place, member))
        if modality.key is not None:
            return _choose(_texts(value, modality.key), draw, f"{name}.text")
        if modality.templates:
            _require_object(value)
            template = _choose(modality.templates, draw, f"{name}.template")
            return template.fill(value, draw, name)
        if modality.is_motion:
            return _motion(value, metadata)
        return cast("Value", value)

    def _decode(self, shard: Shard, place: int, member: str, least: Least | None = None) -> Any:
        # The size is known without reading the member.
        if shard.size(place, member) > self.limits.max_bytes:
            raise DecodeError(
                "too_large",
                f"{member!r} has {shard.size(place, member)} bytes, over "
                f"max_bytes={self.limits.max_bytes}",
            )
        return decode(member, shard.read(place, member), self.limits, least)


def _parse(name: str, entry: Mapping[str, Any], manifest: Manifest, split: str) -> _Modality:
    """Checks one modality's entry against the manifest."""
    for given in entry:
        if given not in _ENTRY:
            raise ValueError(f"modality {name!r}: {given!r}; {suggest(given, _ENTRY)}")
    member, key = entry.get("member"), entry.get("key")
    members = (member,) if isinstance(member, str) else tuple(member or ())
    if not members:
        raise ValueError(f"modality {name!r} needs a 'member', or a list of them")
    kinds = {manifest.field(member, split).kind for member in members}
    if len(kinds) > 1:
        raise ValueError(
            f"modality {name!r}: its members are of different kinds: {', '.join(sorted(kinds))}"
        )
    text = entry.get("template")
    templates = tuple(Template(t) for t in ((text,) if isinstance(text, str) else text or ()))
    if (key is not None) + bool(templates) != (kinds == {"json"}):
        raise ValueError(
            f"modality {name!r}: a JSON member needs a 'key' or a 'template', and only it does"
        )
    keys = {key} if key is not None else {key for each in templates for key in each.keys}
    for member in members:
        for wanted in sorted(keys):
            _check_key(manifest, split, member, wanted)
    return _Modality(members, key, templates, kinds == {"imu"})


def _check_key(manifest: Manifest, split: str, member: str, key: str) -> None:
    known = manifest.field(member, split).keys
    if known and key not in known:
        raise ValueError(f"{manifest.path}: {member!r} has no key {key!r}; {suggest(key, known)}")


def _require_object(decoded: Any) -> None:
    if not isinstance(decoded, dict):
        raise DecodeError("metadata", f"expected a JSON object, got {type(decoded).__name__}")


def _get(metadata: Any, key: str) -> Any:
    _require_object(metadata)
    if metadata.get(key) is None:
        raise DecodeError("metadata", f"the JSON has no {key!r}")
    return metadata[key]


def _choose(options: Sequence[T], draw: Draw | None, name: str) -> T:
    return options[0 if draw is None else draw.pick(name, len(options))]


def _texts(metadata: Any, key: str) -> list[str]:
    found = _get(metadata, key)
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DecodeError("metadata", f"{key!r} must be a text or a list of texts, is {found!r}")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DecodeError("empty", f"{key!r} holds no text")
    return texts


def _motion(array: Any, metadata: dict[str, Any]) -> Signal:
    """An IMU array as m/s^2 and rad/s, with the rate and the unit that the metadata gives."""
    rate, scale = _get(metadata, "rate_hz"), metadata.get("scale", 1.0)
    for key, number in (("rate_hz", rate), ("scale", scale)):
        if not isinstance(number, int | float) or not 0 < number < float("inf"):
            raise DecodeError("metadata", f"{key!r} must be a number above 0, is {number!r}")
    return Signal(array.astype(np.float32) * np.float32(scale), float(rate))
