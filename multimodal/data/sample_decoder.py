"""Decodes the members of a sample into modalities."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from multimodal.core.hashing import stable_hash
from multimodal.data.captions import choose, draw_text, get_key, require_object, texts_of
from multimodal.data.decoding.checks import as_motion
from multimodal.data.decoding.decode import DepthMap, Limits, MinSize, Signal, Value, decode
from multimodal.data.decoding.values import PCM16
from multimodal.data.decoding.video import Video
from multimodal.data.errors import DecodeError
from multimodal.data.lru import LRU
from multimodal.data.modality import METADATA, Modality, check_key, parse_modality, unaligned
from multimodal.data.negatives.listing import ListedValue, Listing, draw, texts_under
from multimodal.data.negatives.swaps import swapped
from multimodal.data.reading import Reading
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.shards.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sample before its transforms.

    Attributes:
        key: its name in the shard.
        values: modality -> picture or array, ``Signal`` (sounds, motion), or text.
        metadata: content of its ``json`` member; empty where there is none.
        sample_id: 64-bit hash of source, shard and key.
        positive_key: 64-bit hash of what makes samples positives of each other.
        captions: texts that the sample has, where all are kept (``keep: all``) and none is drawn.
        listed: modality -> negatives that the sample lists; of those modalities that were asked for
            with them.
    """

    key: str
    values: dict[str, Value]
    metadata: dict[str, Any]
    sample_id: int
    positive_key: int
    captions: int = 1
    listed: dict[str, list[ListedValue]] = field(default_factory=dict)


class ShardReader(Protocol):
    """A shard, or anything else that holds samples by position."""

    path: Path
    keys: list[str]

    def fields(self, index: int) -> list[str]:
        """Names of the members of a sample."""
        ...

    def size(self, index: int, field: str) -> int:
        """Bytes of one member."""
        ...

    def read(self, index: int, field: str) -> bytes:
        """Content of one member."""
        ...

    def check(self, index: int) -> None:
        """Rejects a sample whose members are ambiguous."""
        ...


def decoded_cache(megabytes: int) -> LRU[tuple[str, int, str], Any]:
    """A cache of decoded members: (path of the shard, place in it, member) -> value."""
    return LRU(megabytes << 20, cost=_bytes)


def _bytes(value: Any) -> int:
    if isinstance(value, Signal | PCM16):
        return value.samples.nbytes
    if isinstance(value, DepthMap):
        return value.values.nbytes
    if isinstance(value, Video):
        return len(value.data)
    return value.nbytes if isinstance(value, np.ndarray) else 100 + len(str(value))


def _compact(value: Any) -> Any:
    """A value as it is kept: sounds of 16 bits in as many."""
    return (PCM16.of(value) or value) if isinstance(value, Signal) else value


class SampleDecoder:
    """How the samples of a source are decoded.

    Args:
        manifest: says what each member holds.
        splits: of the manifest; all must have what the modalities ask for.
        modalities: as ``Source`` takes them.
        positive_key: as ``Source`` takes it.

    Attributes:
        positive_key: as above.
        name: what the source is called in logs and seeds; the manifest's name, see ``within``.
        limits: sizes that are decoded.
        cache: decoded members, of this source and of those it shares the cache with.
        multi_caption: the modality of which evaluation keeps every text; None where there is none.
        listings: modality -> where the negatives are that samples list.
        alone: modalities whose random choices need not agree with the others', see `unaligned`.

    Raises:
        ValueError: if there are no modalities, one asks for what the manifest does not have, or
            several keep all their texts.
    """

    def __init__(
        self,
        manifest: Manifest,
        splits: Sequence[str],
        modalities: Mapping[str, Mapping[str, Any]],
        positive_key: str | None,
    ) -> None:
        if not modalities:
            raise ValueError(f"the source of {manifest.path} has no modalities")
        self.name = manifest.name
        self.limits = Limits()
        self.cache = decoded_cache(0)
        self.positive_key = positive_key
        for split in splits:
            if positive_key is not None:
                check_key(manifest, split, METADATA, positive_key)
            self._modalities = {
                name: parse_modality(name, entry, manifest, split)
                for name, entry in modalities.items()
            }
        kept = [name for name, modality in self._modalities.items() if modality.keeps_all]
        if len(kept) > 1:
            raise ValueError(f"keep: all is for one modality of a source, not {' and '.join(kept)}")
        self.multi_caption: str | None = kept[0] if kept else None
        self.alone = unaligned(self._modalities)
        self.listings: dict[str, Listing] = {
            name: modality.listing
            for name, modality in self._modalities.items()
            if modality.listing is not None
        }

    def within(
        self, name: str, limits: Limits, cache: LRU[tuple[str, int, str], Any]
    ) -> SampleDecoder:
        """The same under the name, limits and cache of a run."""
        decoder = copy.copy(self)
        decoder.name, decoder.limits, decoder.cache = name, limits, cache
        return decoder

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities of every sample."""
        return tuple(self._modalities)

    def modality(self, name: str) -> Modality:
        """What the source says of a modality."""
        return self._modalities[name]

    def entry(self, modality: str) -> str:
        """Where a modality is read from, as a text that is equal for equal entries."""
        members, key, templates, _, target = self._modalities[modality][:5]
        words = (members, key, [template.text for template in templates])
        reading = self._modalities[modality].reading
        more: list[Any] = [] if target is None else [target]
        more += [] if reading == Reading() else [reading]
        weights = self._modalities[modality].weights
        more += [] if weights is None else ["weights", weights]
        return repr((*words, *more))

    def is_optional(self, modality: str) -> bool:
        """Whether a sample may lack a modality."""
        return self._modalities[modality].optional

    def is_random(self, modality: str) -> bool:
        """Whether training may draw one of several values of a modality."""
        members, key, templates = self._modalities[modality][:3]
        return len(members) > 1 or key is not None or bool(templates)

    def decode(
        self,
        shard: ShardReader,
        place: int,
        shard_name: str,
        rng: SampleRNG | None,
        modalities: Collection[str] | None = None,
        min_size: Mapping[str, MinSize] | None = None,
        caption: int = 0,
    ) -> Decoded:
        """The values of one sample of a shard; without a draw, with this one of its captions.

        Raises:
            IndexError: if it has fewer.
            DecodeError: if something of it is missing, corrupt or too large.
        """
        shard.check(place)
        metadata = self.metadata(shard, place)
        values = {
            name: self._value(
                name, modality, shard, place, metadata, rng, (min_size or {}).get(name)
            )
            for name, modality in self._modalities.items()
            if (modalities is None or name in modalities)
            and not (modality.optional and modality.is_absent(shard.fields(place), metadata))
        }
        key = shard.keys[place]
        sample_id = stable_hash(self.name, shard_name, key)
        positive = sample_id
        if self.positive_key is not None:
            positive = stable_hash(self.positive_key, repr(get_key(metadata, self.positive_key)))
        captions = 1
        if rng is None and self.multi_caption is not None and self.multi_caption in values:
            texts = self._texts(self.multi_caption, shard, place, metadata)
            captions, values[self.multi_caption] = len(texts), texts[caption]
        return Decoded(key, values, metadata, sample_id, positive, captions)

    def listed(
        self, name: str, shard: ShardReader, place: int, decoded: Decoded, rng: SampleRNG
    ) -> list[ListedValue]:
        """Negatives of a modality that stand in the sample itself; those of other samples do not.

        Args:
            name: of the modality.
            shard: of the sample.
            place: of the sample in it.
            decoded: the sample.
            rng: draws as many as the listing wants.

        Raises:
            DecodeError: if something else than a list is there, or a file is corrupt.
        """
        modality, listing = self._modalities[name], self.listings[name]
        options: list[Any] = []
        if listing.key is not None:
            options = texts_under(decoded.metadata, listing.key)
        elif listing.swap and name in decoded.values:
            text = str(decoded.values[name])
            options = swapped(text, listing.swap, listing.count, rng, name)
        elif listing.members:
            fields = shard.fields(place)
            options = [member for member in listing.members if member in fields]
        negatives = []
        for number, option in draw(options, listing.count, rng, name):
            value = option
            if listing.members:
                one = modality._replace(members=(option,))
                value = self._value(name, one, shard, place, decoded.metadata, rng, None)
            key = stable_hash("listed", decoded.sample_id, name, number)
            own = replace(rng, source=f"{rng.source}/listed {number}", view=None)
            negatives.append(ListedValue(value, key, key, own))
        return negatives

    def _texts(
        self, name: str, shard: ShardReader, place: int, metadata: dict[str, Any]
    ) -> list[str]:
        """All texts of a modality that keeps them."""
        modality = self._modalities[name]
        assert modality.key is not None
        member = next(m for m in modality.members if m in shard.fields(place))
        value = metadata if member == METADATA else self._decode(shard, place, member)
        return texts_of(value, modality.key)

    def metadata(self, shard: ShardReader, place: int) -> dict[str, Any]:
        """Content of a sample's ``json`` member; empty where there is none."""
        if METADATA not in shard.fields(place):
            return {}
        metadata = self._decode(shard, place, METADATA)
        if not isinstance(metadata, dict):
            raise DecodeError("metadata", f"expected a JSON object, got {type(metadata).__name__}")
        return metadata

    def _value(
        self,
        name: str,
        modality: Modality,
        shard: ShardReader,
        place: int,
        metadata: dict[str, Any],
        rng: SampleRNG | None,
        min_size: MinSize | None,
    ) -> Value:
        fields = shard.fields(place)
        present = [member for member in modality.members if member in fields]
        if not present:
            raise DecodeError("missing", f"{name} needs {' or '.join(modality.members)}")
        member = choose(present, rng, f"{name}.member")
        kind = modality.reading.kind(modality.kind)
        if member == METADATA:
            value: Any = metadata
        elif min_size is not None:  # smaller for each draw: not to be kept
            value = self._decode(shard, place, member, kind, min_size)
        else:
            key = (
                str(shard.path),
                place,
                member if kind == modality.kind else f"{member} as {kind}",
            )
            value = self.cache.get(
                key, lambda _: _compact(self._decode(shard, place, member, kind))
            )
            value = value.signal() if isinstance(value, PCM16) else value
        if modality.key is not None:
            return draw_text(modality.key, modality.weights, value, rng, f"{name}.text")
        if modality.templates:
            require_object(value)
            template = choose(modality.templates, rng, f"{name}.template")
            return template.fill(value, rng, name)
        if modality.target is not None:
            return cast("Value", get_key(value, modality.target))
        if modality.kind == "imu":
            return as_motion(value, metadata)
        return cast("Value", modality.reading.apply(value, metadata))

    def _decode(
        self,
        shard: ShardReader,
        place: int,
        member: str,
        kind: str | None = None,
        min_size: MinSize | None = None,
    ) -> Any:
        # The size is known without reading the member.
        if shard.size(place, member) > self.limits.max_bytes:
            raise DecodeError(
                "too_large",
                f"{member!r} has {shard.size(place, member)} bytes, over "
                f"max_bytes={self.limits.max_bytes}",
            )
        return decode(member, shard.read(place, member), self.limits, min_size, kind)
