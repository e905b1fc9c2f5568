"""What a packing has to do: samples with keys of their own, sorted into shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from multimodal.core.hashing import stable_hash
from multimodal.data.errors import BadSampleError
from multimodal.data.packing.items import Item, Refusal
from multimodal.data.packing.keys import printable, unique_keys
from multimodal.data.packing.plan import Plan, split_of

ORIGINAL = "original_name"  # metadata key of a sample whose name is not its key
_TAR_BLOCK = 512
_ORDER = ("train", "val", "test")


class Job(NamedTuple):
    """One shard."""

    name: str
    split: str
    items: list[Item]


class Work(NamedTuple):
    """All shards, and the samples left out.

    Attributes:
        jobs: the shards.
        refused: samples and files that were passed over.
        digest: equal for equal work, on any machine.
    """

    jobs: list[Job]
    refused: list[Refusal]
    digest: str


def work_of(given: Iterable[Item | Refusal], plan: Plan) -> Work:
    """The shards of a packing: a function of the samples and the plan alone."""
    items, refused = _sorted_out(given, plan)
    jobs = _jobs(items, plan)
    digest = hashlib.sha256(repr(plan).encode())
    for job in jobs:
        for item in job.items:
            line = (job.name, item.key, dict(item.metadata), sorted(item.members))
            digest.update(repr(line).encode("utf-8", "backslashreplace"))
    return Work(jobs, refused, digest.hexdigest())


def _sorted_out(given: Iterable[Item | Refusal], plan: Plan) -> tuple[list[Item], list[Refusal]]:
    """Samples with a key of their own, and refusals of the others."""
    items: dict[str, Item] = {}
    refused = []
    for item in given:
        if isinstance(item, Refusal):
            refused.append(item._replace(key=printable(item.key), detail=printable(item.detail)))
        elif item.name in items:
            refused.append(Refusal(item.key, "duplicate_key", f"another sample is {item.name!r}"))
        elif not item.key:
            refused.append(Refusal(item.key, "bad_key", f"no key can be made of {item.name!r}"))
        else:
            items[item.name] = item
    refusals = []
    for name, key in unique_keys(items).items():
        item = items[name]
        if key != name:
            metadata = {**item.metadata, ORIGINAL: printable(name)}
            item = replace(item, key=key, metadata=metadata)
        if plan.group is not None and _group(item, plan) is None:
            refused.append(Refusal(key, "no_group", f"the metadata have no {plan.group!r}"))
        else:
            refusals.append(item)
    return refusals, refused


def _jobs(items: Sequence[Item], plan: Plan) -> list[Job]:
    """The shards: of each split, in an order that is shuffled once and for all."""
    by_split: dict[str, list[Item]] = {name: [] for name in plan.splits or _ORDER}
    for item in sorted(items, key=lambda item: stable_hash(plan.seed, item.key)):
        by_split.setdefault(_split(item, plan), []).append(item)
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
            Job(f"{plan.name}-{split.replace('_', '-')}-{at:06d}.tar", split, part)
            for at, part in enumerate(parts)
        ]
    return jobs


def _split(item: Item, plan: Plan) -> str:
    """By the plan's shares, else as where it comes from, else ``train``."""
    if plan.splits is None:
        return item.split or "train"
    return split_of(item.key if plan.group is None else _group(item, plan), plan.splits)


def _group(item: Item, plan: Plan) -> Any:
    """The value that is kept in one split."""
    assert plan.group is not None
    value = item.metadata.get(plan.group)
    if value is None and "json" in item.members:
        try:
            value = item.own_metadata(plan.limits.max_bytes).get(plan.group)
        except (OSError, BadSampleError):  # refused where it is packed
            return item.key
    return value
