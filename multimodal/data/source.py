"""Samples by index: the shards of a manifest, and each sample's position in them."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multimodal.data.decoding.decode import Limits, MinSize
from multimodal.data.errors import BadSampleError, ShardError
from multimodal.data.loading.frozen_embeddings import FrozenEmbeddings
from multimodal.data.lru import LRU
from multimodal.data.sample_decoder import Decoded, SampleDecoder, decoded_cache
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.settings import ReadSettings
from multimodal.data.shards.manifest import load_manifest
from multimodal.data.shards.remote import DEFAULT_FOLDER, RemoteShard, ShardCache, is_remote
from multimodal.data.shards.tar import Shard

__all__ = ["Decoded", "Place", "RawSample", "Source", "SourceContext"]

_OPEN_SHARDS = 32  # kept mapped in each process
_RETRY_AFTER_S = 60.0  # seconds until a shard that could not be read is tried once more
_DEFAULT_BYTES = 100 << 30  # of remote shards in the cache


@dataclass(frozen=True, slots=True)
class RawSample:
    """A sample as stored in its shard.

    Attributes:
        key: its name in the shard.
        members: field -> bytes.
        metadata: content of its ``json`` member; empty where there is none.
    """

    key: str
    members: dict[str, bytes]
    metadata: dict[str, Any]


class Place(NamedTuple):
    """A sample's location, for messages."""

    shard: str
    key: str


@dataclass(frozen=True)
class SourceContext:
    """What all sources of a run share.

    Attributes:
        limits: sizes that are decoded.
        cache: decoded members of all of them.
        verify: whether a shard's hash is compared with the manifest when it is first opened.
        remote: cache of the shards that are behind URLs.
    """

    limits: Limits = field(default_factory=Limits)
    cache: LRU[tuple[str, int, str], Any] = field(
        default_factory=lambda: decoded_cache(0), repr=False
    )
    verify: bool = True
    remote: ShardCache = field(default_factory=lambda: ShardCache(DEFAULT_FOLDER, _DEFAULT_BYTES))

    @classmethod
    def of(cls, settings: ReadSettings) -> SourceContext:
        """The context that a run's settings describe."""
        return cls(
            settings.limits or Limits(),
            decoded_cache(settings.cache_mb),
            settings.verify_shards,
            ShardCache(settings.remote_cache_folder, int(settings.remote_cache_gb * 1e9)),
        )


class Source:
    """The samples of one split of a manifest, by index.

    Args:
        manifest: path or URL of the manifest; ``samples://NAME.json`` for one of the sample corpus.
        modalities: for each modality the ``member`` that holds it, or several of which one is
            drawn; for a JSON member also the ``key`` of a text in it, or of a list of texts of
            which one is drawn, by ``weights`` if there are any: a list by the texts' places, or the
            key of each sample's own list; or else a ``template`` (``{name}, {tags}``, see
            ``Template``), or several of which one is drawn, or else the ``value`` (a key) that is
            used unchanged: a label, a score, a list of tags. ``optional: true`` lets samples lack
            the modality. See ``Reading`` for pictures (``window``) and depth maps (``unit_m``).
            ``keep: all`` beside a ``key``: evaluation, which draws nothing, takes not the first
            text of the list but every one of them, each as a right answer of its sample.
        split: the manifest's split, or several, one after the other.
        positive_key: JSON key whose equal values make samples positives of each other, also across
            sources; None if a sample is only its own.
        batch_size: per device; None for ``data.batch_size``.
        repeat: how many times an epoch draws each sample.
        weight: share of an epoch's batches; the alternative to ``repeat``.

    Attributes:
        decoder: of its samples.
        table: of its shards.
        remote: cache of the shards, where the manifest is behind a URL; None where it is local.
        frozen: modality -> embeddings of its frozen tower, which training reads instead.

    Raises:
        FileNotFoundError: if there is no such manifest.
        ValueError: if the manifest is faulty, or lacks the split, a member or a key.
    """

    def __init__(
        self,
        manifest: str,
        modalities: dict[str, dict[str, Any]],
        split: str | list[str] = "train",
        positive_key: str | None = None,
        batch_size: int | None = None,
        repeat: float = 1.0,
        weight: float | None = None,
    ) -> None:
        loaded = load_manifest(manifest)
        splits = [split] if isinstance(split, str) else list(split)
        self.table = loaded.split(*splits)
        self.decoder = SampleDecoder(loaded, splits, modalities, positive_key)
        self.frozen: dict[str, FrozenEmbeddings] = {}
        self.split = ", ".join(splits)
        self.batch_size = batch_size
        self.repeat = repeat
        self.weight = weight
        self._folder = loaded.folder
        self._enter(SourceContext())

    def _enter(self, context: SourceContext) -> None:
        self.remote = context.remote if is_remote(self._folder) else None
        self._verify = context.verify and self.remote is None  # remote ones are verified on arrival
        self._verified: set[int] = set()  # shards whose hash was right
        self._broken: dict[
            int, tuple[float, ShardError]
        ] = {}  # time of the next attempt, last error
        self._shards: LRU[int, Shard] = LRU(_OPEN_SHARDS)

    def within(self, context: SourceContext, name: str | None = None) -> Source:
        """The same samples, read as a run reads them.

        Args:
            context: of the run.
            name: what the run calls the source in its logs and seeds; None: the manifest's name.
        """
        source = copy.copy(self)
        source.decoder = self.decoder.within(name or self.name, context.limits, context.cache)
        source.frozen = {}
        source._enter(context)
        return source

    @property
    def name(self) -> str:
        """What the source is called in logs and seeds."""
        return self.decoder.name

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities of every sample."""
        return self.decoder.modalities

    def __len__(self) -> int:
        return self.table.num_samples

    @property
    def folder(self) -> str:
        """Folder or URL of its shards."""
        return str(self._folder)

    @cached_property
    def digest(self) -> str:
        """Equal for sources with the same shards in the same order."""
        digest = hashlib.blake2b(digest_size=8)
        for column in (self.table.names, self.table.samples, self.table.sha256):
            digest.update(column.tobytes())
        return digest.hexdigest()

    def read(self, index: int) -> RawSample:
        """A sample as stored in its shard.

        Raises:
            IndexError: if ``index`` is not in [0, len(self)).
            ShardError: if its shard cannot be read.
            DecodeError: if its metadata cannot.
        """
        shard, place = self._locate(index)
        shard.check(place)
        members = {field: shard.read(place, field) for field in shard.fields(place)}
        return RawSample(shard.keys[place], members, self.decoder.metadata(shard, place))

    def decode(
        self,
        index: int,
        rng: SampleRNG | None,
        modalities: Collection[str] | None = None,
        min_size: Mapping[str, MinSize] | None = None,
        caption: int = 0,
    ) -> Decoded:
        """A sample's values, before their transforms.

        Args:
            index: of the sample.
            rng: chooses among several members and texts; None for the first of each.
            modalities: those wanted; None for all.
            min_size: of the modalities whose pictures may come smaller, how small.
            caption: which text of a modality that keeps all, without a draw.

        Raises:
            IndexError: if ``index`` is not in [0, len(self)), or there is no such caption.
            ShardError: if its shard cannot be read.
            DecodeError: if something of it is missing, corrupt or too large.
        """
        number, place = self.table.locate(index)
        shard = self._shards.get(number, self._open)
        shard_name = self.table.name(number).rpartition("/")[2]
        return self.decoder.decode(shard, place, shard_name, rng, modalities, min_size, caption)

    def place(self, index: int) -> Place:
        """A sample's location, for messages; its key is unknown while its shard is unreadable."""
        name = self.table.name(self.table.locate(index)[0])
        try:
            shard, place = self._locate(index)
        except BadSampleError:
            return Place(name, f"sample {index}")
        return Place(name, shard.keys[place])

    def fetch_ahead(self, indices: Iterable[int]) -> None:
        """Starts to fetch the shards of these samples if they are remote."""
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

    def next_index(self, index: int, whole_shard: bool) -> int:
        """The next sample, or the first of the next shard; after the last comes the first."""
        next_one = index + 1
        if whole_shard:
            next_one = int(self.table.starts[self.table.locate(index)[0] + 1])
        return next_one % len(self)

    def _locate(self, index: int) -> tuple[Shard, int]:
        number, place = self.table.locate(index)
        return self._shards.get(number, self._open), place

    def _open(self, number: int) -> Shard:
        # Each sample of a broken shard needs it: retry the file only after a while.
        if number in self._broken and time.monotonic() < self._broken[number][0]:
            raise self._broken[number][1]
        verify = self._verify and number not in self._verified

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
            self._broken[number] = (time.monotonic() + _RETRY_AFTER_S, error)
            raise
        if verify:
            self._verified.add(number)
        return shard
