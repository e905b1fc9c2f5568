"""Samples by index: the shards of a manifest, and each sample's position in them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from multimodal.data.decoding.decode import Limits, MinSize
from multimodal.data.errors import BadSampleError
from multimodal.data.joining import Indices, Partner, merged
from multimodal.data.joining import join as join_shards
from multimodal.data.loading.frozen_embeddings import FrozenEmbeddings
from multimodal.data.lru import LRU
from multimodal.data.negatives.listing import ListedValue, draw
from multimodal.data.negatives.resolving import OtherSamples
from multimodal.data.sample_decoder import Decoded, SampleDecoder, ShardReader, decoded_cache
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.settings import ReadSettings
from multimodal.data.shards.manifest import load_manifest
from multimodal.data.shards.opening import ShardFiles, numbers_of
from multimodal.data.shards.remote import DEFAULT_BYTES, DEFAULT_FOLDER, ShardCache, is_remote
from multimodal.data.shards.table import ShardTable
from multimodal.data.shards.tar import Shard

__all__ = ["Decoded", "Place", "RawSample", "Source", "SourceContext"]


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
    remote: ShardCache = field(default_factory=lambda: ShardCache(DEFAULT_FOLDER, DEFAULT_BYTES))

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
        manifest: path or URL of the manifest; ``samples://NAME.json`` for one of the sample corpus;
            with ``join`` two of them.
        modalities: for each modality the ``member`` that holds it, or several of which one is
            drawn; for a JSON member also the ``key`` of a text in it, or of a list of texts of
            which one is drawn, by ``weights`` if there are any: a list by the texts' places, or the
            key of each sample's own list; or else a ``template`` (``{name}, {tags}``, see
            ``Template``), or several of which one is drawn, or else the ``value`` (a key) that is
            used unchanged: a label, a score, a list of tags. ``optional: true`` lets samples lack
            the modality. See ``Reading`` for pictures (``window``) and depth maps (``unit_m``).
            ``negatives`` lists hard negatives of each sample for training, see ``Listing``.
            ``keep: all`` beside a ``key``: evaluation, which draws nothing, takes not the first
            text of the list but every one of them, each as a right answer of its sample.
        split: the manifest's split, or several, one after the other.
        positive_key: JSON key whose equal values make samples positives of each other, also across
            sources; None if a sample is only its own.
        batch_size: per device; None for ``data.batch_size``.
        repeat: how many times an epoch draws each sample.
        weight: share of an epoch's batches; the alternative to ``repeat``.
        join: joins the samples of two manifests without rewriting their tars: the JSON key whose
            values must be equal, or ``__key__`` for the samples' own names. The first manifest's
            samples that have a partner are those of the source. Shards behind URLs are all fetched
            for it, when the source is first used.

    Attributes:
        manifest: the first one.
        splits: of it.
        decoder: of its samples.
        remote: cache of the shards, where the manifest is behind a URL; None where it is local.
        frozen: modality -> embeddings of its frozen tower, which training reads instead.

    Raises:
        FileNotFoundError: if there is no such manifest.
        ValueError: if the manifest is faulty, or lacks the split, a member or a key.
    """

    def __init__(
        self,
        manifest: str | list[str],
        modalities: dict[str, dict[str, Any]],
        split: str | list[str] = "train",
        positive_key: str | None = None,
        batch_size: int | None = None,
        repeat: float = 1.0,
        weight: float | None = None,
        join: str | None = None,
    ) -> None:
        manifests = [manifest] if isinstance(manifest, str) else list(manifest)
        if len(manifests) != (1 if join is None else 2):
            raise ValueError(
                "manifest is one, or with `join: KEY` two that share the key; got "
                f"{len(manifests)} and join={join!r}"
            )
        loaded = load_manifest(manifests[0])
        splits = [split] if isinstance(split, str) else list(split)
        self.manifest, self.splits = loaded, splits
        self._own = loaded.split(*splits)
        self._other: ShardTable | None = None  # the other manifest's shards, where two are joined
        self._other_folder = ""
        self._join = join
        self._joined: tuple[ShardTable, Indices] | None = None  # once the shards are looked at
        if join is not None:
            other = load_manifest(manifests[1])
            self._other, self._other_folder = other.split(*splits), other.folder
            loaded = merged(loaded, other)
        self.decoder = SampleDecoder(loaded, splits, modalities, positive_key)
        self.frozen: dict[str, FrozenEmbeddings] = {}
        self.split = ", ".join(splits)
        self.batch_size = batch_size
        self.repeat = repeat
        self.weight = weight
        self._folder = loaded.folder
        self._enter(SourceContext())
        if not any(map(is_remote, self.folders)):
            len(self)  # local ones are joined here, so that faults are reported first

    def _enter(self, context: SourceContext) -> None:
        self._context = context
        self.remote = context.remote if is_remote(self._folder) else None
        self._others = OtherSamples(self.keys)
        # What was opened in another context is opened again.
        self.__dict__.pop("_files", None)
        self.__dict__.pop("_partner", None)

    def _opened(self, table: ShardTable, folder: str, verify: bool = True) -> ShardFiles:
        remote = self._context.remote if is_remote(folder) else None
        return ShardFiles(table, folder, remote, verify and self._context.verify)

    @property
    def table(self) -> ShardTable:
        """Of its shards; of two manifests, joined when it is first needed.

        Raises:
            ValueError: if they cannot be joined.
        """
        if self._other is None:
            return self._own
        if self._joined is None:
            own = self._opened(self._own, self._folder, verify=False)
            theirs = self._opened(self._other, self._other_folder, verify=False)
            self._joined = join_shards(own, theirs, str(self._join))
        return self._joined[0]

    @cached_property
    def _files(self) -> ShardFiles:
        return self._opened(self.table, self._folder)

    @cached_property
    def _partner(self) -> Partner | None:
        """Where sources are joined, the other manifest's sample for each."""
        if self._other is None:
            return None
        len(self)  # joins them
        assert self._joined is not None
        return Partner(self._opened(self._other, self._other_folder), self._joined[1])

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

    @property
    def folders(self) -> tuple[str, ...]:
        """Folder or URL of its shards, and of those that are joined to them."""
        return (self.folder, *([] if self._other is None else [self._other_folder]))

    @cached_property
    def digest(self) -> str:
        """Equal for sources with the same shards in the same order."""
        digest = hashlib.blake2b(digest_size=8)
        columns = [self.table.names, self.table.samples, self.table.sha256]
        if self.table.kept is not None:
            columns.append(self.table.kept)
        if self._other is not None and self._joined is not None:
            columns += [self._other.sha256, self._joined[1]]
        for column in columns:
            digest.update(column.tobytes())
        return digest.hexdigest()

    def read(self, index: int) -> RawSample:
        """A sample as stored in its shard.

        Raises:
            IndexError: if ``index`` is not in [0, len(self)).
            ShardError: if its shard cannot be read.
            DecodeError: if its metadata cannot.
        """
        shard, place = self._reader(index)
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
        listed: Collection[str] = (),
    ) -> Decoded:
        """A sample's values, before their transforms.

        Args:
            index: of the sample.
            rng: chooses among several members and texts; None for the first of each.
            modalities: those wanted; None for all.
            min_size: of the modalities whose pictures may come smaller, how small.
            caption: which text of a modality that keeps all, without a draw.
            listed: modalities whose listed negatives are wanted too; they are drawn by ``rng``.

        Raises:
            IndexError: if ``index`` is not in [0, len(self)), or there is no such caption.
            ShardError: if its shard cannot be read.
            DecodeError: if something of it is missing, corrupt or too large.
        """
        number, place = self.table.locate(index)
        shard: ShardReader = self._reader(index)[0]
        shard_name = self.table.name(number).rpartition("/")[2]
        decoded = self.decoder.decode(shard, place, shard_name, rng, modalities, min_size, caption)
        if rng is not None:
            for name in listed:
                own = self.decoder.listed(name, shard, place, decoded, rng)
                decoded.listed[name] = own or self._listed_samples(name, index, decoded, rng)
        return decoded

    def _listed_samples(
        self, name: str, index: int, decoded: Decoded, rng: SampleRNG
    ) -> list[ListedValue]:
        """Other samples; one that cannot be read is left out, and counted when its turn comes."""
        listing, values = self.decoder.listings[name], list[ListedValue]()
        others = self._others.of(listing, index, decoded.metadata)
        for _, other in draw(others, listing.count, rng, name):
            own = replace(rng, index=other, view=None)
            with suppress(BadSampleError):
                sample = self.decode(other, own, [name])
                if name in sample.values:
                    keys = sample.sample_id, sample.positive_key
                    values.append(ListedValue(sample.values[name], *keys, own))
        return values

    def keys(self) -> list[str]:
        """The samples' keys, in order; see `ShardFiles.keys`."""
        return self._files.keys()

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
        if not any(map(is_remote, self.folders)):
            return
        indices = list(indices)
        self._files.fetch_ahead(numbers_of(self.table, indices))
        if self._partner is not None:
            self._partner.fetch_ahead(indices)

    def next_index(self, index: int, whole_shard: bool) -> int:
        """The next sample, or the first of the next shard; after the last comes the first."""
        next_one = index + 1
        if whole_shard:
            next_one = int(self.table.starts[self.table.locate(index)[0] + 1])
        return next_one % len(self)

    def _reader(self, index: int) -> tuple[ShardReader, int]:
        """A sample's shard, with its partner's members where sources are joined, and its place."""
        shard, place = self._locate(index)
        return (shard if self._partner is None else self._partner.beside(shard, index)), place

    def _locate(self, index: int) -> tuple[Shard, int]:
        number, place = self.table.locate(index)
        return self._files.open(number), place
