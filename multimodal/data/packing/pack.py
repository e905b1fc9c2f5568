"""Packs samples into shards with a manifest: in parallel, in shares, resumable, with a report."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from multimodal.data.packing.items import DONE, Item, Refusal
from multimodal.data.packing.jobs import Work, work_of
from multimodal.data.packing.output import Output, output_at
from multimodal.data.packing.pack_shard import Done, as_json, finished, pack_shard
from multimodal.data.packing.parallel import Runner, in_processes
from multimodal.data.packing.plan import Plan
from multimodal.data.packing.quality import Quality
from multimodal.data.packing.write import ShardEntry, write_manifest

_WORK = f"{DONE}/work.json"  # what the shares of a packing have in common
_EXAMPLES = 3  # refusals of a kind in a message


class Packed(NamedTuple):
    """The outcome of packing.

    Attributes:
        manifest: path or URL of the manifest.
        report: samples, splits, refusals by reason and the data's quality, as plain values.
    """

    manifest: str
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Share:
    """One of several parts of a packing; the first is number 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """A share as it is written: ``3/16``.

        Raises:
            ValueError: if it is none.
        """
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            raise ValueError(f"a share is NUMBER/COUNT, 3/16 say, got {text!r}")
        share = cls(int(number), int(count))
        if not 1 <= share.number <= share.count:
            raise ValueError(f"a share is a number from 1 to {share.count}, got {text!r}")
        return share


def pack(
    given: Iterable[Item | Refusal],
    output: Output | str | Path,
    plan: Plan,
    run: Runner | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Packed:
    """Packs samples into shards, and writes the manifest, ``report.json`` and ``refused.jsonl``.

    Every sample is decoded once; what training would reject is not packed. An interrupted run
    continues with the missing shards; a finished one only rewrites the report. The shards do not
    depend on how the work is done.

    Args:
        given: the samples.
        output: folder or URL of the shards; made if it is not there.
        plan: how to pack.
        run: does the work; None in this process.
        progress: called with the number of finished samples and their total, after each shard.

    Raises:
        ValueError: if nothing can be packed.
    """
    output = _prepared(output)
    work = work_of(given, plan)
    output.remove_leftovers(f"{plan.name}-")
    done = _run(work, work.jobs, output, plan, run, progress)
    return _finish(output, plan, work.refused, done)


def pack_share(
    given: Iterable[Item | Refusal],
    output: Output | str | Path,
    plan: Plan,
    share: Share,
    run: Runner | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Packs one share of the shards; `merge` completes them when all shares are there.

    Args:
        given: all samples, the same in every share.
        output: as of `pack`, the same in every share.
        plan: as of `pack`, the same in every share.
        share: which shards are packed here.
        run: as of `pack`.
        progress: as of `pack`.

    Returns:
        The number of shards of this share.

    Raises:
        ValueError: if another share was packed of other data or settings.
    """
    output = _prepared(output)
    work = work_of(given, plan)
    shared = {
        "work": work.digest,
        "shares": share.count,
        "jobs": [job.name for job in work.jobs],
        "refused": [list(refusal) for refusal in work.refused],
        "plan": plan.of_manifest(),
    }
    before = output.read(_WORK)
    if before is not None and json.loads(before).get("work") != work.digest:
        raise ValueError(
            f"{output.where(_WORK)}: another share was packed of other data or with other options; "
            "give all shares the same, or empty the folder"
        )
    output.write(_WORK, as_json(shared))
    jobs = work.jobs[share.number - 1 :: share.count]
    _run(work, jobs, output, plan, run, progress)
    return len(jobs)


def merge(output: Output | str | Path) -> Packed:
    """Completes a packing in shares: writes its manifest and report.

    Raises:
        FileNotFoundError: if no share is there.
        ValueError: if a share is missing; names it.
    """
    output = output if not isinstance(output, str | Path) else output_at(output)
    content = output.read(_WORK)
    if content is None:
        raise FileNotFoundError(
            f"no share was packed in {output.where('')}: --share 1/16 packs one"
        )
    shared = json.loads(content)
    done, missing = [], []
    for number, name in enumerate(shared["jobs"]):
        outcome = finished(output, name, None, shared["work"])
        if outcome is None:
            missing.append(number % shared["shares"] + 1)
        else:
            done.append(outcome)
    if missing:
        shares = ", ".join(f"{n}/{shared['shares']}" for n in sorted(set(missing)))
        raise ValueError(f"{len(missing)} shards are not packed yet; run the shares {shares}")
    refused = [Refusal(*refusal) for refusal in shared["refused"]]
    return _finish(output, Plan(**shared["plan"]), refused, done)


def _prepared(output: Output | str | Path) -> Output:
    output = output_at(output) if isinstance(output, str | Path) else output
    output.prepare(DONE)
    return output


def _run(
    work: Work,
    jobs: Sequence[Any],
    output: Output,
    plan: Plan,
    run: Runner | None,
    progress: Callable[[int, int], None],
) -> list[Done]:
    task = functools.partial(pack_shard, output=output, plan=plan, work=work.digest)
    done: list[Done] = (run or in_processes(1))(task, jobs, progress, _samples)
    for outcome in done:
        entry = outcome.entry
        if entry is not None and output.size(entry.name) != entry.bytes:
            raise ValueError(
                f"{output.where(entry.name)} is not there: name a folder that all machines share, "
                "or a URL"
            )
    return done


def _samples(job: Any) -> int:
    return len(job.items)


def _finish(output: Output, plan: Plan, refused: Sequence[Refusal], done: Sequence[Done]) -> Packed:
    quality, refused = Quality(), list(refused)
    for outcome in done:
        quality.merge(outcome.quality)
        refused += outcome.refused
    entries = [outcome.entry for outcome in done if outcome.entry is not None]
    _refuse_all_gone(entries, refused)
    licences = [{"what": "all", "licence": plan.licence}] if plan.licence else []
    name = f"{plan.name}.json"
    with output.staged(name) as path:
        write_manifest(
            path, plan.name, plan.description, entries, plan.kinds, plan.origin, licences
        )
    report = _report(entries, refused, quality)
    output.write("report.json", as_json(report, indent=2))
    output.write("refused.jsonl", b"".join(as_json(each._asdict()) for each in refused))
    _remove_others(output, entries)
    return Packed(output.where(name), report)


def _refuse_all_gone(entries: Sequence[ShardEntry], refused: Sequence[Refusal]) -> None:
    if entries:
        return
    if not refused:
        raise ValueError("nothing to pack: there are no samples")
    reasons = Counter(refusal.reason for refusal in refused)
    shown = [next(r for r in refused if r.reason == reason) for reason, _ in reasons.most_common(3)]
    first = "; ".join(f"{r.key!r}: {r.reason}, {r.detail}" for r in shown)
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    raise ValueError(f"nothing to pack: {len(refused)} were refused ({counted}); {first}")


def _report(
    entries: Sequence[ShardEntry], refused: Sequence[Refusal], quality: Quality
) -> dict[str, Any]:
    splits: dict[str, dict[str, int]] = {}
    for entry in entries:
        split = splits.setdefault(entry.split, {"shards": 0, "samples": 0, "bytes": 0})
        split["shards"] += 1
        split["samples"] += entry.samples
        split["bytes"] += entry.bytes
    reasons = Counter(refusal.reason for refusal in refused)
    keys: Counter[str] = Counter()
    for entry in entries:
        keys.update(entry.keys.get("json", {}))
    return {
        "splits": splits,
        "refused": dict(reasons.most_common()),
        "examples": {
            reason: [f"{r.key}: {r.detail}" for r in refused if r.reason == reason][:_EXAMPLES]
            for reason, _ in reasons.most_common()
        },
        "json": dict(keys),
        "quality": quality.report(),
    }


def _remove_others(output: Output, entries: Sequence[ShardEntry]) -> None:
    """Shards that an earlier run with other samples or sizes has packed here."""
    kept = {entry.name for entry in entries}
    for record in output.names(DONE):
        name = record.removesuffix(".json")
        if name.endswith(".tar") and name not in kept:
            output.remove(name)
            output.remove(f"{DONE}/{record}")
