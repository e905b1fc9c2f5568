"""Creates manifests for existing tars, and verifies tars against their manifest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from multimodal.core.files import sha256
from multimodal.data.decoding.checks import check_value
from multimodal.data.decoding.decode import Limits, decode
from multimodal.data.errors import BadSampleError
from multimodal.data.packing.layouts.names import makes_sense
from multimodal.data.packing.parallel import in_parallel
from multimodal.data.packing.tables.splits import split_in_name
from multimodal.data.packing.tables.values import is_caption_name, is_nothing, text_fault
from multimodal.data.packing.write import ShardEntry, count_keys, write_manifest
from multimodal.data.shards.manifest import Field, Manifest, kind_of, load_manifest
from multimodal.data.shards.remote import RemoteShard, ShardCache, is_remote
from multimodal.data.shards.table import ShardTable
from multimodal.data.shards.tar import Shard

_ALWAYS_TEXTS = ("caption", "captions")  # keys that hold nothing else
_NAMED = "its names make no sense: {}; a file's own dots were taken for a member's, pack it again"


class ShardProblem(NamedTuple):
    """A problem of a shard, or of one of its samples if a key is given."""

    shard: str
    key: str
    reason: str
    detail: str


class _Looked(NamedTuple):
    """One tar; ``fields`` are those of each sound sample, by which names are judged."""

    name: str
    entry: ShardEntry | None
    problems: list[ShardProblem]
    fields: list[tuple[str, list[str]]]


class _Checked(NamedTuple):
    """One shard: keys and fields of its samples, its own problem, and theirs by their places."""

    name: str
    fields: list[tuple[str, list[str]]]
    broken: list[ShardProblem]
    problems: dict[int, ShardProblem]


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
        ValueError: if there are no tars, if one is broken, if a member cannot be read by anything,
            or if the names of all members make no sense.
    """
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        packed = [path.name for path in sorted(folder.glob("*.tar.*"))]
        hint = f"; unpack {packed[0]} first" if packed else ""
        raise ValueError(f"no *.tar in {folder}{hint}")
    looked = in_parallel(_look, [(path, split(path.name)) for path in paths], workers, progress)
    problems = [problem for result in looked for problem in result.problems]
    broken = [problem for problem in problems if not problem.key]
    if broken and not skip_broken:
        lines = [f"{problem.shard}: {problem.detail}" for problem in broken]
        raise ValueError(
            "\n  - ".join(["these tars are broken (--skip-broken leaves them out):", *lines])
        )
    odd, senseless = _senseless([(result.name, result.fields) for result in looked])
    entries = [
        result.entry._replace(fields=[f for f in result.entry.fields if f not in odd])
        for result in looked
        if result.entry is not None
    ]
    if odd and not any(entry.fields for entry in entries):
        first = next(iter(senseless.values()))
        raise ValueError(f"{folder}: {first.shard}, {first.key!r}: {first.detail}")
    path = folder / f"{name}.json"
    write_manifest(path, name, f"tars of {folder.name}", entries, kinds or {})
    return path, [*problems, *senseless.values()]


def verify(
    path: Path | str,
    limits: Limits | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, list[ShardProblem]]:
    """Checks every shard of a manifest as training does.

    Hash and count, names of members, and of every member that it decodes to what its kind is.
    Shards behind a URL are fetched for it, one by each process, and not kept.

    Args:
        path: of the manifest, or its URL.
        limits: of decoded sizes; None for the default.
        workers: processes.
        progress: called with the number of finished shards and their total.

    Returns:
        The number of good samples, and the problems. Together with the samples of the problems they
        are all that the manifest counts.
    """
    manifest = load_manifest(path)
    largest = max(int(table.bytes.max()) for table in manifest.splits.values())
    with TemporaryDirectory(prefix="verify-") as folder:
        cache = ShardCache(folder, largest * workers)
        jobs = [
            _VerifyJob(
                shard_of(manifest.folder, table, number),
                cache,
                (
                    int(table.stored[number]),
                    int(table.bytes[number]),
                    table.sha256[number].tobytes(),
                ),
                {name: field for name, field in manifest.fields.items() if _is_of(field, split)},
                limits or Limits(),
            )
            for split, table in manifest.splits.items()
            for number in range(len(table))
        ]
        checked = in_parallel(_verify_one, jobs, workers, progress)
    _, senseless = _senseless([(result.name, result.fields) for result in checked])
    good, problems = 0, []
    for number, result in enumerate(checked):
        problems_of = {place: p for (shard, place), p in senseless.items() if shard == number}
        problems_of |= result.problems
        good += len(result.fields) - len(problems_of)
        problems += [*result.broken, *(problems_of[place] for place in sorted(problems_of))]
    return good, problems


def partial_keys(manifest: Manifest) -> list[str]:
    """A line for each key of a JSON member that some samples lack."""
    total = sum(table.num_samples for table in manifest.splits.values())
    return [
        f"{total - count} of {total} samples have no {key!r} in {name}"
        for name, field in manifest.fields.items()
        for key, count in field.partial.items()
        if is_caption_name(key)
    ]


def _senseless(
    shards: Sequence[tuple[str, list[tuple[str, list[str]]]]],
) -> tuple[set[str], dict[tuple[int, int], ShardProblem]]:
    """Names of members that were a part of a file's name, and the samples that have them.

    The samples by the numbers of their shard and place.
    """
    count = Counter(field for _, samples in shards for _, fields in samples for field in fields)
    total = sum(len(samples) for _, samples in shards)
    odd = {field for field, times in count.items() if not makes_sense(field, times, total)}
    problems = {}
    for number, (shard, samples) in enumerate(shards):
        for place, (key, fields) in enumerate(samples):
            if wrong := [field for field in fields if field in odd]:
                names = ", ".join(map(repr, wrong[:3]))
                detail = _NAMED.format(names)
                problems[number, place] = ShardProblem(shard, key, "member_name", detail)
    return odd, problems


def _look(job: tuple[Path, str]) -> _Looked:
    """One tar as a manifest describes it."""
    path, split = job
    try:
        shard = Shard(path)
    except BadSampleError as error:
        return _Looked(path.name, None, [ShardProblem(path.name, "", error.reason, str(error))], [])
    if len(shard) == 0:
        empty = ShardProblem(path.name, "", "empty", "has no samples")
        return _Looked(path.name, None, [empty], [])
    problems = [
        ShardProblem(
            path.name, stray, "stray", "does not belong to a sample: its name is not KEY.FIELD"
        )
        for stray in shard.stray_members
    ]
    counts: Counter[str] = Counter()
    keys: dict[str, dict[str, int]] = {}
    sound = []
    for place, key in enumerate(shard.keys):
        try:
            shard.check(place)
        except BadSampleError as error:
            problems.append(ShardProblem(path.name, key, error.reason, error.detail))
            continue
        fields = shard.fields(place)
        counts.update(fields)
        sound.append((key, fields))
        for field in fields:
            if field.rpartition(".")[2].lower() == "json":
                document = _document(shard.read(place, field))
                count_keys(document, keys.setdefault(field, {}))
                problems += _text_problems(path.name, key, document)
    size, digest = path.stat().st_size, sha256(path).hex()
    entry = ShardEntry(path.name, split, len(shard), size, digest, sorted(counts), keys)
    return _Looked(path.name, entry, problems, sound)


def _text_problems(shard: str, key: str, document: Any) -> list[ShardProblem]:
    """Captions without a text, which training will not find."""
    if not isinstance(document, dict):
        return []
    return [
        ShardProblem(shard, key, "no_text", f"{name!r} {fault}")
        for name, value in document.items()
        if is_caption_name(name)
        and (fault := text_fault(value))
        and (is_nothing(value) or name in _ALWAYS_TEXTS)
    ][:1]


def _document(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # verify reports it
        return None


class _VerifyJob(NamedTuple):
    shard: Path | RemoteShard
    cache: ShardCache  # of remote ones
    facts: tuple[int, int, bytes]  # samples, bytes, hash
    fields: dict[str, Field]
    limits: Limits


def shard_of(folder: str, table: ShardTable, number: int) -> Path | RemoteShard:
    """Where a shard of a table is: a file, or what a cache fetches."""
    name = table.name(number)
    if not is_remote(folder):
        return Path(folder) / name
    digest = table.sha256[number].tobytes()
    return RemoteShard(f"{folder}/{name}", int(table.bytes[number]), digest)


def _is_of(field: Field, split: str) -> bool:
    return field.splits is None or split in field.splits


def _verify_one(job: _VerifyJob) -> _Checked:
    where = job.shard
    name = where.name if isinstance(where, Path) else where.url.rpartition("/")[2]
    try:
        if isinstance(where, Path):
            shard = Shard(where, *job.facts)
        else:
            shard = job.cache.open(where, lambda path: Shard(path, *job.facts))
    except BadSampleError as error:
        return _Checked(name, [], [ShardProblem(name, "", error.reason, str(error))], {})
    checked = {place: _verify_sample(shard, name, place, job) for place in range(len(shard))}
    fields = [(key, shard.fields(place)) for place, key in enumerate(shard.keys)]
    return _Checked(name, fields, [], {place: p for place, p in checked.items() if p is not None})


def _verify_sample(shard: Shard, name: str, place: int, job: _VerifyJob) -> ShardProblem | None:
    key = shard.keys[place]
    try:
        shard.check(place)
        kinds = {f: _kind(f, job.fields) for f in shard.fields(place)}
        values = {
            f: decode(f, shard.read(place, f), job.limits, kind=kind) for f, kind in kinds.items()
        }
        metadata = values.get("json", {})
        if not isinstance(metadata, dict):
            detail = f"expected a JSON object, got {type(metadata).__name__}"
            return ShardProblem(name, key, "metadata", detail)
        for field, value in values.items():
            check_value(field, kinds[field], value, metadata)
    except BadSampleError as error:
        return ShardProblem(name, key, error.reason, error.detail)
    except ValueError as error:
        return ShardProblem(name, key, "unsupported", str(error))
    problems = [p for f, value in values.items() for p in _text_problems(name, key, value)]
    return problems[0] if problems else _missing_keys(name, key, values, job.fields)


def _kind(field: str, fields: Mapping[str, Field]) -> str:
    return fields[field].kind if field in fields else kind_of(field, {})


def _missing_keys(
    shard: str, key: str, values: Mapping[str, Any], fields: Mapping[str, Field]
) -> ShardProblem | None:
    """Keys that the manifest says every sample has."""
    for name, field in fields.items():
        document = values.get(name)
        if field.kind != "json" or not field.keys or not isinstance(document, dict):
            continue
        missing = [k for k in field.keys if k not in field.partial and document.get(k) is None]
        if missing:
            return ShardProblem(shard, key, "metadata", f"{name!r} has no key {missing[0]!r}")
    return None
