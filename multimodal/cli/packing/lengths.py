"""Records the lengths of all samples of a manifest: of pictures and sounds from their headers."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multimodal.data.decoding.decode import Limits, decode
from multimodal.data.decoding.pictures import picture_size
from multimodal.data.decoding.sounds import sound_seconds
from multimodal.data.errors import DecodeError
from multimodal.data.packing.index import shard_of
from multimodal.data.packing.parallel import in_parallel
from multimodal.data.shards.formats import FORMATS
from multimodal.data.shards.lengths import column_of, write_lengths
from multimodal.data.shards.manifest import load_manifest
from multimodal.data.shards.remote import RemoteShard, ShardCache
from multimodal.data.shards.tar import Shard

Rows = dict[str, list[Any]]  # column -> a length for each sample
_MEASURED = ("image", "depth", "array", "audio", "text", "json")


class _Job(NamedTuple):
    shard: Path | RemoteShard
    cache: ShardCache  # of remote ones
    samples: int
    places: NDArray[np.int64]
    kinds: Mapping[str, str]  # of the members that have a length


def record_lengths(
    path: Path | str,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Writes the lengths of a manifest's samples into a folder beside it.

    Pictures, depth maps and arrays have height and width, upright as they are decoded; sounds
    milliseconds, rounded up; texts, and the texts under every key of a JSON member, the bytes of
    the longest. What cannot be read, or is absent, has 0.

    Args:
        path: of the manifest, a local one; its shards may be behind URLs.
        workers: processes.
        progress: called with the number of finished shards and their total.

    Returns:
        The folder.

    Raises:
        ValueError: if the manifest is behind a URL.
        ShardError: if a shard cannot be read.
    """
    manifest = load_manifest(path)
    kinds = {name: field.kind for name, field in manifest.fields.items() if field.kind in _MEASURED}
    largest = max(int(table.bytes.max()) for table in manifest.splits.values())
    with TemporaryDirectory(prefix="lengths-") as folder:
        cache = ShardCache(folder, largest * workers)
        jobs = [
            _Job(
                shard_of(manifest.folder, table, number),
                cache,
                int(table.stored[number]),
                np.asarray(table.places_of(number)),
                kinds,
            )
            for table in manifest.splits.values()
            for number in range(len(table))
        ]
        read = iter(in_parallel(_read, jobs, workers, progress))
    splits = {
        split: _columns([next(read) for _ in range(len(table))], table.samples.tolist())
        for split, table in manifest.splits.items()
    }
    return write_lengths(manifest, splits)


def _columns(shards: list[Rows], samples: list[int]) -> dict[str, NDArray[np.int32]]:
    names = sorted({name for rows in shards for name in rows})
    columns = {}
    for name in names:
        first = next(rows[name][0] for rows in shards if name in rows)
        nothing = (0, 0) if isinstance(first, tuple) else 0
        parts = [rows.get(name, [nothing] * n) for rows, n in zip(shards, samples, strict=True)]
        columns[name] = np.array([length for part in parts for length in part], np.int32)
    return columns


def _read(job: _Job) -> Rows:
    if isinstance(job.shard, Path):
        shard = Shard(job.shard, samples=job.samples)
    else:
        shard = job.cache.open(job.shard, lambda path: Shard(path, samples=job.samples))
    rows: Rows = {}
    for number, place in enumerate(job.places.tolist()):
        for member in shard.fields(place):
            if member not in job.kinds:
                continue
            for column, length in _lengths(member, shard.read(place, member), job.kinds[member]):
                nothing = (0, 0) if isinstance(length, tuple) else 0
                kept = rows.setdefault(column, [nothing] * len(job.places))
                kept[number] = length
    return rows


def _lengths(member: str, data: bytes, kind: str) -> list[tuple[str, Any]]:
    """The columns of one member, each with its length."""
    if kind == "audio":
        return [(column_of(member), _milliseconds(data))]
    if kind in ("image", "depth", "array"):
        size = _size(member, data)
        return [] if size is None else [(column_of(member), size)]
    if kind == "text":
        return [(column_of(member), len(data.strip()))]
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):  # bad in training too
        return []
    if not isinstance(document, dict):
        return []
    return [
        (column_of(member, key), longest)
        for key, value in document.items()
        if (longest := _longest(value)) is not None
    ]


def _longest(value: Any) -> int | None:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        return None
    return max(len(text.strip().encode()) for text in texts)


def _size(member: str, data: bytes) -> tuple[int, int] | None:
    """Height and width; zeros where it cannot be read, None of what has none."""
    decoder = FORMATS[member.rpartition(".")[2].lower()].decoder
    try:
        if decoder == "picture":
            return picture_size(data, Limits())
        if decoder == "array":
            return _array_size(data)
        if decoder == "points":
            return None
        return decode(member, data, Limits(), kind="image").shape[:2]  # type: ignore[no-any-return]
    except DecodeError:
        return 0, 0


def _array_size(data: bytes) -> tuple[int, int] | None:
    """The first two sides, by the header; None where there is one side only."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        shape, _, _ = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    except (ValueError, OSError):
        return 0, 0
    return (shape[0], shape[1]) if len(shape) > 1 else None


def _milliseconds(data: bytes) -> int:
    try:
        return math.ceil(1000 * sound_seconds(data, Limits()))
    except Exception:  # the libraries' own too: bad in training as well
        return 0
