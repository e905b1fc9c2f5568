"""Other WebDataset tars, repacked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path

from multimodal.data.errors import BadSampleError
from multimodal.data.packing.contents import Content, InShard
from multimodal.data.packing.items import Item, Refusal, Samples, Say
from multimodal.data.packing.layouts.names import MemberNames, makes_sense
from multimodal.data.packing.tables.reading import Reading
from multimodal.data.shards.tar import Shard


def tars(paths: Sequence[Path], reading: Reading, say: Say) -> Samples:
    """The samples of tars, in order.

    Where the first dot of a name is not the one before its member, as in
    ``Track 2.1 (Clean).wav``, the members are sorted into samples again.
    """
    say(f"WebDataset tars: {len(paths)} (--layout)")
    shards: list[tuple[Path, Shard]] = []
    for path in paths:
        opened = _opened(path)
        if isinstance(opened, Refusal):
            yield opened
        else:
            shards.append((path, opened))
    fields = [
        (key, field)
        for _, shard in shards
        for place, key in enumerate(shard.keys)
        for field in shard.fields(place)
    ]
    count = Counter(field for _, field in fields)
    total = sum(map(len, (shard for _, shard in shards)))
    if shards and not total:
        raise ValueError(f"{_named(paths)} no samples: no member is named KEY.FIELD")
    odd = {field for field, times in count.items() if not makes_sense(field, times, total)}
    every = (f"{key}.{field}" for key, field in fields if field in odd)
    names = MemberNames(every, reading.members, reading.expected)
    for path, shard in shards:
        for stray in shard.stray_members:
            yield Refusal(stray, "stray", f"{path.name}: {stray!r} belongs to no sample")
        yield from _samples(path, shard, odd, names)


def _named(paths: Sequence[Path]) -> str:
    return f"{paths[0]} holds" if len(paths) == 1 else f"{len(paths)} tars hold"


def _opened(path: Path) -> Shard | Refusal:
    try:
        return Shard(path)
    except BadSampleError as error:
        return Refusal(path.name, error.reason, str(error))


def _samples(path: Path, shard: Shard, odd: Container[str], names: MemberNames) -> Samples:
    for place, key in enumerate(shard.keys):
        try:
            shard.check(place)
        except BadSampleError as error:
            yield Refusal(key, error.reason, f"{path.name}: {error.detail}")
            continue
        samples: dict[str, dict[str, Content]] = {}
        for field in shard.fields(place):
            split = names.split(f"{key}.{field}") if field in odd else None
            name, member = (key, field) if split is None else split
            content = InShard(path, place, field, shard.size(place, field))
            samples.setdefault(name, {})[member] = content
        for name, members in samples.items():
            yield Item(name, members)
