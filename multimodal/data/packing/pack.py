"""Pack samples into shards with a manifest: in parallel, resumable, with a report."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from multimodal.core.files import remove_leftovers, write_bytes, write_errors
from multimodal.core.hashing import stable_hash
from multimodal.data.decoding.decode import decode
from multimodal.data.errors import BadSampleError
from multimodal.data.packing.items import Item, Refusal
from multimodal.data.packing.parallel import in_parallel
from multimodal.data.packing.plan import Plan, split_of
from multimodal.data.packing.quality import Quality
from multimodal.data.packing.write import PACKED, ShardEntry, ShardWriter, json_keys, write_manifest
from multimodal.data.shards.manifest import kind_of

_DONE = ".make_shards"  # folder of finished work, for a resumed run
_TAR_BLOCK = 512


class Packed(NamedTuple):
    """The outcome of packing.

    Attributes:
        manifest: path of the manifest.
        report: samples, splits, refusals by reason and the data's quality, as plain values.
    """

    manifest: Path
    report: dict[str, Any]


class _Job(NamedTuple):
    name: str
    split: str
    items: list[Item]


@dataclass(slots=True)
class _Done:
    entry: ShardEntry | None
    refused: list[Refusal]
    quality: Quality


def pack(
    given: Iterable[Item | Refusal],
    folder: Path,
    plan: Plan,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Packed:
    """Packs samples into shards, and writes the manifest, ``report.json`` and ``refused.jsonl``.

    Every sample is decoded once; what training would reject is not packed. An interrupted run
    continues with the missing shards; a finished one only rewrites the report.

    Args:
        given: the samples.
        folder: of the shards; made if it is not there.
        plan: how to pack.
        workers: processes.
        progress: called with the number of finished samples and their total, after each shard.

    Raises:
        ValueError: if nothing can be packed.
    """
    with write_errors(folder):
        (folder / _DONE).mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, f"{plan.name}-")
    items, refused = _sorted_out(given, plan)
    jobs = _jobs(items, plan)
    work = functools.partial(_pack_one, folder=folder, plan=plan)
    done = in_parallel(work, jobs, workers, progress, lambda job: len(job.items))
    quality = Quality()
    for outcome in done:
        quality.merge(outcome.quality)
        refused += outcome.refused
    entries = [outcome.entry for outcome in done if outcome.entry is not None]
    _refuse_all_gone(entries, refused)
    path = folder / f"{plan.name}.json"
    licences = [{"what": "all", "licence": plan.licence}] if plan.licence else []
    write_manifest(path, plan.name, plan.description, entries, plan.kinds, plan.origin, licences)
    report = _report(entries, refused, quality)
    write_bytes(folder / "report.json", _json(report, indent=2))
    write_bytes(folder / "refused.jsonl", b"".join(_json(each._asdict()) for each in refused))
    _remove_others(folder, entries)
    return Packed(path, report)


def _sorted_out(given: Iterable[Item | Refusal], plan: Plan) -> tuple[list[Item], list[Refusal]]:
    """Samples with a unique key, and refusals of the others."""
    items: dict[str, Item] = {}
    refused = []
    for item in given:
        if isinstance(item, Refusal):
            refused.append(item)
        elif item.key in items:
            refused.append(Refusal(item.key, "duplicate_key", "another sample has this key"))
        elif not item.key or "." in item.key.rpartition("/")[2] or "\0" in item.key:
            detail = "a key is a text without dots: what follows a dot names the member"
            refused.append(Refusal(item.key, "bad_key", detail))
        else:
            items[item.key] = item
    if plan.group is not None:
        for key in [key for key, item in items.items() if _group(item, plan.group) is None]:
            refused.append(Refusal(key, "no_group", f"the metadata have no {plan.group!r}"))
            del items[key]
    return list(items.values()), refused


def _jobs(items: Sequence[Item], plan: Plan) -> list[_Job]:
    """The shards: of each split, in an order that is shuffled once and for all."""
    by_split: dict[str, list[Item]] = {name: [] for name in plan.splits}
    for item in sorted(items, key=lambda item: stable_hash(plan.seed, item.key)):
        by_split[split_of(_group(item, plan.group), plan.splits)].append(item)
    jobs = []
    for split, chosen in by_split.items():
        parts: list[list[Item]] = []
        size = plan.max_bytes
        for item in chosen:
            cost = item.size + 2 * _TAR_BLOCK * (len(item.members) + 1)
            if size + cost > plan.max_bytes or len(parts[-1]) >= plan.max_samples:
                parts.append([])
                size = 0
            parts[-1].append(item)
            size += cost
        jobs += [
            _Job(f"{plan.name}-{split.replace('_', '-')}-{at:06d}.tar", split, part)
            for at, part in enumerate(parts)
        ]
    return jobs


def _group(item: Item, key: str | None) -> Any:
    if key is None:
        return item.key
    value = item.metadata.get(key)
    if value is None and "json" in item.members:
        try:
            value = item.read()[1].get(key)
        except (OSError, BadSampleError):  # refused where it is packed
            return item.key
    return value


def _pack_one(job: _Job, folder: Path, plan: Plan) -> _Done:
    """One shard; reused if an earlier run has packed it from the same samples."""
    record = folder / _DONE / f"{job.name}.json"
    fingerprint = _fingerprint(job, plan)
    if (done := _finished(record, folder / job.name, fingerprint)) is not None:
        return done
    quality, refused = Quality(), []
    documents: list[dict[str, Any]] = []
    names: set[str] = set()
    samples = 0
    writer = ShardWriter(folder / job.name)
    try:
        for item in job.items:
            try:
                members, values, metadata = _checked(item, plan)
            except BadSampleError as error:
                refused.append(Refusal(item.key, error.reason, error.detail))
                continue
            except OSError as error:
                detail = f"{error.filename}: {error.strerror}"
                refused.append(Refusal(item.key, "unreadable", detail))
                continue
            quality.add(item.key, members, values, metadata, plan.label)
            if metadata:
                members["json"] = _json(metadata).strip()
                documents.append(metadata)
            names |= members.keys()
            writer.add(item.key, members)
            samples += 1
        entry = None
        if samples:
            keys = {"json": json_keys(documents) if len(documents) == samples else []}
            entry = ShardEntry(job.name, job.split, samples, *writer.close(), sorted(names), keys)
    finally:
        writer.discard()
    outcome = _Done(entry, refused, quality)
    write_bytes(record, _json({"fingerprint": fingerprint, **_as_plain(outcome)}), PACKED)
    return outcome


def _checked(item: Item, plan: Plan) -> tuple[dict[str, bytes], dict[str, Any], dict[str, Any]]:
    """Bytes, decoded values and metadata of a sample that training can read."""
    members, metadata = item.read()
    for name in plan.required:
        if name not in members and (name != "json" or not metadata):
            raise BadSampleError("missing", f"no member {name!r}")
    if not members and not metadata:
        raise BadSampleError("empty", "the sample has no members")
    try:
        kinds = {name: kind_of(name, plan.kinds) for name in members}
    except ValueError as error:
        raise BadSampleError("unsupported", str(error)) from error
    values = {
        name: decode(name, data, plan.limits, kind=kinds[name]) for name, data in members.items()
    }
    return members, values, metadata


def _fingerprint(job: _Job, plan: Plan) -> str:
    """Equal as long as a shard would be the same: of names, sizes and times of all files."""
    digest = hashlib.sha256(repr((job.name, plan)).encode())
    for item in job.items:
        digest.update(repr((item.key, item.metadata)).encode())
        for name, where in sorted(item.members.items()):
            path = where if isinstance(where, Path) else where.path
            status = path.stat() if path.is_file() else None
            when = (status.st_size, status.st_mtime_ns) if status else None
            digest.update(repr((name, str(where), when)).encode())
    return digest.hexdigest()


def _as_plain(done: _Done) -> dict[str, Any]:
    return {
        "entry": done.entry._asdict() if done.entry else None,
        "refused": [list(refusal) for refusal in done.refused],
        "quality": done.quality.as_plain(),
    }


def _finished(record: Path, shard: Path, fingerprint: str) -> _Done | None:
    try:
        saved = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return None
    if saved.get("fingerprint") != fingerprint:
        return None
    entry = ShardEntry(**saved["entry"]) if saved["entry"] else None
    if entry and not (shard.is_file() and shard.stat().st_size == entry.bytes):
        return None
    refused = [Refusal(*refusal) for refusal in saved["refused"]]
    return _Done(entry, refused, Quality.from_plain(saved["quality"]))


def _refuse_all_gone(entries: Sequence[ShardEntry], refused: Sequence[Refusal]) -> None:
    if entries:
        return
    reasons = Counter(refusal.reason for refusal in refused)
    first = "; ".join(f"{r.key!r}: {r.reason}, {r.detail}" for r in refused[:3])
    raise ValueError(
        f"nothing to pack: {len(refused)} samples were refused ({dict(reasons)}); {first}"
        if refused
        else "nothing to pack: there are no samples"
    )


def _report(
    entries: Sequence[ShardEntry], refused: Sequence[Refusal], quality: Quality
) -> dict[str, Any]:
    splits: dict[str, dict[str, int]] = {}
    for entry in entries:
        split = splits.setdefault(entry.split, {"shards": 0, "samples": 0, "bytes": 0})
        split["shards"] += 1
        split["samples"] += entry.samples
        split["bytes"] += entry.bytes
    return {
        "splits": splits,
        "refused": dict(Counter(refusal.reason for refusal in refused).most_common()),
        "quality": quality.report(),
    }


def _remove_others(folder: Path, entries: Sequence[ShardEntry]) -> None:
    """Shards that an earlier run with other samples or sizes has packed here."""
    kept = {entry.name for entry in entries}
    for record in (folder / _DONE).glob("*.tar.json"):
        name = record.name.removesuffix(".json")
        if name not in kept:
            (folder / name).unlink(missing_ok=True)
            record.unlink()


def _json(value: Any, indent: int | None = None) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=indent, default=str) + "\n").encode()
