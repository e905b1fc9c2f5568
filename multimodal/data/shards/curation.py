"""Keep-lists: which samples of a manifest training sees, without rewriting a tar.

A curated manifest is the given one with a bit for each sample of its shards.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multimodal.core import strict_json
from multimodal.core.files import write_text
from multimodal.data.shards.manifest import content_of, load_manifest
from multimodal.data.shards.remote import (
    DEFAULT_BYTES,
    DEFAULT_FOLDER,
    RemoteShard,
    ShardCache,
    is_remote,
)
from multimodal.data.shards.table import packed, unpacked
from multimodal.data.shards.tar import Shard

_ROWS = 2048  # compared at a time

Vectors = NDArray[np.float32]


class Curated(NamedTuple):
    """What is kept.

    Attributes:
        samples: in the manifest that was given, less what was left out of it already.
        kept: of them.
        left_out: how many each reason leaves out, the first that applies.
    """

    samples: int
    kept: int
    left_out: dict[str, int]


def near_duplicates(vectors: Vectors, threshold: float) -> NDArray[np.bool_]:
    """Which rows are near an earlier one that is not a near-duplicate itself.

    Args:
        vectors: ``[N, D]``, of length 1.
        threshold: smallest cosine similarity of near-duplicates.
    """
    is_near = np.zeros(len(vectors), bool)
    for start in range(0, len(vectors), _ROWS):
        block = vectors[start : start + _ROWS]
        for first in range(0, start, _ROWS):
            earlier = vectors[first : first + _ROWS][~is_near[first : first + _ROWS]]
            if len(earlier):
                near = (block @ earlier.T >= threshold).any(axis=1)
                is_near[start : start + len(block)] |= near
        within = np.tril(block @ block.T >= threshold, -1)
        for row in np.flatnonzero(within.any(axis=1)):
            is_near[start + row] |= bool((within[row] & ~is_near[start : start + len(block)]).any())
    return is_near


def overlapping(vectors: Vectors, others: Vectors, threshold: float) -> NDArray[np.bool_]:
    """Which rows are as near as ``threshold`` (cosine) to one of ``others``.

    Args:
        vectors: ``[N, D]``, of length 1.
        others: ``[M, D]``, of length 1.
        threshold: smallest similarity.
    """
    is_near = np.zeros(len(vectors), bool)
    for start in range(0, len(vectors), _ROWS):
        block = vectors[start : start + _ROWS]
        for first in range(0, len(others), _ROWS):
            near = (block @ others[first : first + _ROWS].T >= threshold).any(axis=1)
            is_near[start : start + len(block)] |= near
    return is_near


def curate(
    manifest: Path | str,
    output: Path,
    unwanted: Mapping[str, Collection[str]],
    least: Mapping[str, float] | None = None,
    remote: ShardCache | None = None,
) -> Curated:
    """Writes a manifest that keeps some of another's samples; both name the same tars.

    Args:
        manifest: a path or a URL, its shards listed in it; what it leaves out stays left out.
        output: the new one, a local file.
        unwanted: reason -> keys of samples that are left out for it.
        least: JSON key -> the smallest value that is kept; a sample without that number is not.
        remote: cache of shards behind URLs, which are fetched whole; None: that of training.

    Raises:
        ValueError: if the manifest is not such a one, a key is of no sample, or nothing is left.
        ShardError: if a shard cannot be read.
    """
    loaded = load_manifest(manifest)  # refuses faulty ones
    content = strict_json.parse(content_of(manifest), f"the manifest {manifest}")
    if not isinstance(content["shards"], list):
        raise ValueError(f"{manifest}: curation needs shards that the manifest itself lists")
    cache = remote or ShardCache(DEFAULT_FOLDER, DEFAULT_BYTES)
    reason_of = {key: reason for reason, keys in unwanted.items() for key in keys}
    left_out: Counter[str] = Counter()
    samples, seen = 0, set()
    for entry in content["shards"]:
        shard = _open(loaded.folder, entry, cache)
        mask = unpacked(entry.get("kept"), len(shard)).copy()
        for place in np.flatnonzero(mask).tolist():
            samples += 1
            key = shard.keys[place]
            reason = reason_of.get(key) or _too_low(shard, place, least or {})
            if key in reason_of:
                seen.add(key)
            if reason:
                mask[place] = False
                left_out[reason] += 1
        if not mask.all():
            entry["kept"] = packed(mask)
    _refuse_strangers(manifest, reason_of.keys() - seen)
    kept = samples - left_out.total()
    if not kept:
        raise ValueError(f"{manifest}: nothing is kept: {dict(left_out)}")
    if is_remote(loaded.folder):
        content["base"] = loaded.folder
    elif output.parent.resolve() != Path(loaded.folder).resolve():
        content["base"] = os.path.abspath(loaded.folder)
    write_text(output, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    load_manifest(output)
    return Curated(samples, kept, dict(left_out))


def _open(folder: str, entry: Mapping[str, Any], cache: ShardCache) -> Shard:
    samples: int = entry["samples"]
    if not is_remote(folder):
        return Shard(Path(folder) / entry["name"], samples=samples)
    where = RemoteShard(f"{folder}/{entry['name']}", entry["bytes"], bytes.fromhex(entry["sha256"]))
    return cache.open(where, lambda path: Shard(path, samples=samples))


def _too_low(shard: Shard, place: int, least: Mapping[str, float]) -> str:
    if not least:
        return ""
    content: Any = {}
    if "json" in shard.fields(place):
        try:
            content = json.loads(shard.read(place, "json"))
        except (ValueError, RecursionError):  # bad in training too
            content = {}
    for key, bound in least.items():
        value = content.get(key) if isinstance(content, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= bound:
            return f"{key} under {bound:g}"
    return ""


def _refuse_strangers(manifest: Path | str, strangers: Collection[str]) -> None:
    if strangers:
        some = ", ".join(sorted(strangers)[:3])
        raise ValueError(
            f"{manifest}: {len(strangers)} keys of the embeddings are of no sample in it ({some}): "
            "embed this manifest"
        )
