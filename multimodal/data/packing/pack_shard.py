"""Packs one shard: every sample is read, decoded and checked as training does it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multimodal.data.decoding.checks import check_value
from multimodal.data.decoding.decode import decode
from multimodal.data.decoding.dicom import check_keywords, header_values
from multimodal.data.errors import BadSampleError
from multimodal.data.packing.items import DONE, Refusal
from multimodal.data.packing.jobs import Job
from multimodal.data.packing.output import Output
from multimodal.data.packing.plan import Plan
from multimodal.data.packing.quality import Quality
from multimodal.data.packing.reads import read_all
from multimodal.data.packing.tables.values import is_caption_name, is_nothing, plain, text_fault
from multimodal.data.packing.write import ShardEntry, ShardWriter, count_keys
from multimodal.data.shards.manifest import kind_of

_ALWAYS_TEXTS = ("caption", "captions")  # keys of JSON files that hold nothing else


@dataclass(slots=True)
class Done:
    """A finished shard; without an entry if none of its samples could be packed."""

    entry: ShardEntry | None
    refused: list[Refusal]
    quality: Quality


def pack_shard(job: Job, output: Output, plan: Plan, work: str) -> Done:
    """One shard; reused if an earlier run has packed it from the same samples.

    Args:
        job: its samples.
        output: where it goes.
        plan: how to pack.
        work: digest of all work that it belongs to.
    """
    fingerprint = _fingerprint(job, plan)
    if (done := finished(output, job.name, fingerprint)) is not None:
        return done
    output.remove_leftovers(job.name)
    with output.staged(job.name) as path:
        writer = ShardWriter(path)
        try:
            done = _packed(job, plan, writer)
        finally:
            writer.discard()
    record = {"fingerprint": fingerprint, "work": work, **_as_plain(done)}
    output.write(f"{DONE}/{job.name}.json", as_json(record))
    return done


def _header(members: Mapping[str, bytes], plan: Plan) -> dict[str, Any]:
    """What the plan names of DICOM headers, of a sample's first such file."""
    files = [name for name in members if name.rpartition(".")[2].lower() in ("dcm", "dicom")]
    if not plan.header or not files:
        return {}
    check_keywords(plan.header)
    try:
        header = header_values(members[sorted(files)[0]], list(plan.header))
    except BadSampleError:
        raise
    except Exception as error:  # pydicom raises all sorts of errors on damaged input
        raise BadSampleError("corrupt", f"{type(error).__name__}: {error}") from error
    return {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", k).lower(): v for k, v in header.items()}


def _packed(job: Job, plan: Plan, writer: ShardWriter) -> Done:
    quality, refused = Quality(), []
    names: set[str] = set()
    keys: dict[str, int] = {}
    samples = 0
    for item, read in read_all(job.items, plan.limits.max_bytes):
        try:
            if isinstance(read, Exception):
                raise read
            members, metadata = read
            metadata |= _header(members, plan)
            texts = _check_texts(members, metadata, item.texts, plan)
            values = _checked(members, metadata, plan)
        except BadSampleError as error:
            refused.append(Refusal(item.key, error.reason, error.detail))
            continue
        except OSError as error:
            where = error.filename or error
            refused.append(Refusal(item.key, "unreadable", f"{where}: {error.strerror}"))
            continue
        quality.add(item.key, members, values, metadata, plan.label, texts)
        if metadata:
            members["json"] = as_json(metadata).strip()
            count_keys(metadata, keys)
        names |= members.keys()
        writer.add(item.key, members)
        samples += 1
    entry = None
    if samples:
        extent = writer.close()
        entry = ShardEntry(job.name, job.split, samples, *extent, sorted(names), {"json": keys})
    return Done(entry, refused, quality)


def _check_texts(
    members: Mapping[str, bytes], metadata: dict[str, Any], texts: Sequence[str], plan: Plan
) -> tuple[str, ...]:
    """The keys of the metadata that hold texts, all of which do.

    Captions without a text are taken out where another text stands for them.

    Raises:
        BadSampleError: if a text that has to be there is none.
    """
    for key, value in list(metadata.items()):
        metadata[key] = plain(value)
        if key in plan.optional or not is_caption_name(key):
            continue
        fault = text_fault(value)
        if fault and is_nothing(value) and (key not in _ALWAYS_TEXTS or _has_text(members)):
            del metadata[key]
        elif fault and (key in _ALWAYS_TEXTS or key in texts):
            raise BadSampleError("no_text", f"{key!r} {fault}")
    return (*texts, *(key for key in metadata if is_caption_name(key) and key not in texts))


def _has_text(members: Mapping[str, bytes]) -> bool:
    return any(name.rpartition(".")[2] == "txt" for name in members)


def _checked(
    members: Mapping[str, bytes], metadata: Mapping[str, Any], plan: Plan
) -> dict[str, Any]:
    """The decoded values of a sample that training can read."""
    kinds = {}
    try:
        for name in members:
            kinds[name] = kind_of(name, plan.kinds)
    except ValueError as error:
        raise BadSampleError("unsupported", str(error)) from error
    for wanted in plan.required:
        there = wanted in members or wanted in kinds.values() or (wanted == "json" and metadata)
        if not there:
            others = ", ".join([*members, *(["json"] if metadata else [])]) or "nothing"
            raise BadSampleError("missing", f"no member {wanted!r}; it has {others}")
    if not members and not metadata:
        raise BadSampleError("empty", "the sample has no members")
    values = {}
    for name, data in members.items():
        values[name] = decode(name, data, plan.limits, kind=kinds[name])
        check_value(name, kinds[name], values[name], metadata)
    return values


def _fingerprint(job: Job, plan: Plan) -> str:
    """Equal as long as a shard would be the same: of names, sizes and times of all files."""
    digest = hashlib.sha256(repr((job.name, plan)).encode())
    for item in job.items:
        digest.update(repr((item.key, dict(item.metadata), item.texts)).encode("utf-8", "replace"))
        for name, content in sorted(item.members.items()):
            digest.update(repr((name, content.stamp())).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def finished(output: Output, name: str, fingerprint: str | None, work: str = "") -> Done | None:
    """A shard that an earlier run has packed; None if it has not, or from something else.

    Args:
        output: where it is.
        name: of the shard.
        fingerprint: of its samples and the plan; None for that of ``work``.
        work: digest of the work that it must belong to.
    """
    record = output.read(f"{DONE}/{name}.json")
    if record is None:
        return None
    try:
        saved = json.loads(record)
        same = saved["fingerprint"] == fingerprint if fingerprint else saved["work"] == work
        if not same:
            return None
        entry = ShardEntry(**saved["entry"]) if saved["entry"] else None
        if entry and output.size(name) != entry.bytes:
            return None
        refused = [Refusal(*refusal) for refusal in saved["refused"]]
        return Done(entry, refused, Quality.from_plain(saved["quality"]))
    except (ValueError, KeyError, TypeError):  # of another version
        return None


def _as_plain(done: Done) -> dict[str, Any]:
    return {
        "entry": done.entry._asdict() if done.entry else None,
        "refused": [list(refusal) for refusal in done.refused],
        "quality": done.quality.as_plain(),
    }


def as_json(value: Any, indent: int | None = None) -> bytes:
    """A line of JSON, which has no NaN."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    return (text + "\n").encode()
