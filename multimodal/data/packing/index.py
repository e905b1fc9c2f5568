"""Creates manifests for existing tars, and verifies tars against their manifest."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from multimodal.core.files import sha256
from multimodal.data.decoding.decode import Limits, decode
from multimodal.data.errors import BadSampleError
from multimodal.data.packing.parallel import in_parallel
from multimodal.data.packing.write import ShardEntry, json_keys, write_manifest
from multimodal.data.shards.manifest import load_manifest
from multimodal.data.shards.remote import is_remote
from multimodal.data.shards.tar import Shard

_SPLITS = {"test": "test", **dict.fromkeys(("val", "valid", "validation", "dev"), "val")}


class ShardProblem(NamedTuple):
    """A problem of a shard, or of one of its samples if a key is given."""

    shard: str
    key: str
    reason: str
    detail: str


class _Looked(NamedTuple):
    entry: ShardEntry | None
    problems: list[ShardProblem]


def split_in_name(name: str) -> str:
    """The split in a shard's name: ``val`` or ``test``, otherwise ``train``."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for word, split in _SPLITS.items() if word in words), "train")


def index(
    folder: Path,
    name: str,
    kinds: Mapping[str, str] | None = None,
    split: Callable[[str], str] = split_in_name,
    skip_broken: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Path, list[ShardProblem]]:
    """Writes a manifest for the tars of a folder, which are not changed.

    Args:
        folder: of the tars; the manifest goes into it.
        name: of the source and its manifest.
        kinds: of members whose names do not imply their kind.
        split: name of a shard -> its split.
        skip_broken: leaves broken tars out of the manifest, instead of refusing them all.
        workers: processes.
        progress: called with the number of finished tars and their total.

    Returns:
        Path of the manifest, and the problems: tars that were left out, samples that training will
        skip (they count in the manifest).

    Raises:
        ValueError: if there are no tars, if one is broken, or if a member cannot be read by
            anything.
    """
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise ValueError(f"no *.tar in {folder}")
    looked = in_parallel(_look, [(path, split(path.name)) for path in paths], workers, progress)
    entries = [result.entry for result in looked if result.entry is not None]
    problems = [problem for result in looked for problem in result.problems]
    broken = [problem for problem in problems if not problem.key]
    if broken and not skip_broken:
        lines = [f"{problem.shard}: {problem.detail}" for problem in broken]
        raise ValueError(
            "\n  - ".join(["these tars are broken (--skip-broken leaves them out):", *lines])
        )
    path = folder / f"{name}.json"
    write_manifest(path, name, f"tars of {folder.name}", entries, kinds or {})
    return path, problems


def verify(
    path: Path,
    limits: Limits | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, list[ShardProblem]]:
    """Checks every shard of a manifest for its hash and count, and decodes every member.

    Args:
        path: of the manifest.
        limits: what is accepted; None for the default.
        workers: processes.
        progress: called with the number of finished shards and their total.

    Returns:
        The number of good samples, and the problems. Together with the samples of the problems they
        are all that the manifest counts.
    """
    manifest = load_manifest(path)
    if is_remote(manifest.folder):
        raise ValueError(f"{path}: the shards are at {manifest.folder}; verify them there")
    kinds = {name: field.kind for name, field in manifest.fields.items()}
    jobs = [
        (
            Path(manifest.folder) / table.name(number),
            int(table.stored[number]),
            int(table.bytes[number]),
            table.sha256[number].tobytes(),
            limits or Limits(),
            kinds,
        )
        for table in manifest.splits.values()
        for number in range(len(table))
    ]
    results = in_parallel(_verify_one, jobs, workers, progress)
    return sum(good for good, _ in results), [
        problem for _, problems in results for problem in problems
    ]


def _look(job: tuple[Path, str]) -> _Looked:
    """One tar as a manifest describes it."""
    path, split = job
    try:
        shard = Shard(path)
    except BadSampleError as error:
        return _Looked(None, [ShardProblem(path.name, "", error.reason, str(error))])
    if len(shard) == 0:
        return _Looked(None, [ShardProblem(path.name, "", "empty", "has no samples")])
    problems = [
        ShardProblem(
            path.name, stray, "stray", "does not belong to a sample: its name is not KEY.FIELD"
        )
        for stray in shard.stray_members
    ]
    counts: Counter[str] = Counter()
    documents: dict[str, list[Any]] = {}
    for place, key in enumerate(shard.keys):
        try:
            shard.check(place)
        except BadSampleError as error:
            problems.append(ShardProblem(path.name, key, error.reason, error.detail))
            continue
        fields = shard.fields(place)
        counts.update(fields)
        for field in fields:
            if field.rpartition(".")[2] == "json":
                documents.setdefault(field, []).append(_keys(shard.read(place, field)))
    keys = {field: json_keys(objects) for field, objects in documents.items()}
    size, digest = path.stat().st_size, sha256(path).hex()
    entry = ShardEntry(path.name, split, len(shard), size, digest, sorted(counts), keys)
    return _Looked(entry, problems)


def _keys(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # verify reports it
        return None


def _verify_one(
    job: tuple[Path, int, int, bytes, Limits, Mapping[str, str]],
) -> tuple[int, list[ShardProblem]]:
    path, samples, size, sha256, limits, kinds = job
    try:
        shard = Shard(path, samples, size, sha256)
    except BadSampleError as error:
        return 0, [ShardProblem(path.name, "", error.reason, str(error))]
    checked = [_verify_sample(shard, place, limits, kinds) for place in range(len(shard))]
    problems = [problem for problem in checked if problem is not None]
    return len(shard) - len(problems), problems


def _verify_sample(
    shard: Shard, place: int, limits: Limits, kinds: Mapping[str, str]
) -> ShardProblem | None:
    try:
        shard.check(place)
        for field in shard.fields(place):
            decode(field, shard.read(place, field), limits, kind=kinds.get(field))
    except BadSampleError as error:
        return ShardProblem(shard.path.name, shard.keys[place], error.reason, error.detail)
    return None
