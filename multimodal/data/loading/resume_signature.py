"""Everything that a run's batches depend on; saved in checkpoints and compared on resume."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from multimodal.core.files import sha256
from multimodal.data.loading.schedule import BatchSchedule, SourceSize
from multimodal.data.shards.paths import resolve
from multimodal.data.source import Source


def signature(schedule: BatchSchedule, sources: Mapping[str, Source]) -> dict[str, Any]:
    """Plain values that are equal for equal global batches, independent of ranks and workers."""
    return {
        "seed": schedule.seed,
        "block_shards": schedule.block_shards,
        "sources": {
            name: {
                "batch_size": size.batch_size,
                "samples": size.num_samples,
                "batches": schedule.batches[name],
                "shards": sources[name].digest,
                "views": {
                    modality: table.views for modality, table in sources[name].frozen.items()
                },
                **_draws(sources[name]),
                "mined": _mined(sources[name]),
                **_tokens(size),
            }
            for name, size in schedule.sources.items()
        },
    }


def _draws(source: Source) -> dict[str, Any]:
    """How a step's views are drawn, where there are several; since 2 alone or together."""
    several = any(table.views > 1 for table in source.frozen.values())
    return {"draws": 2} if several else {}


def _tokens(size: SourceSize) -> dict[str, Any]:
    """What token batches depend on; nothing of others, as in checkpoints from before them."""
    if size.budget is None:
        return {}
    return {"batch_size": None, "max_tokens": size.budget.most, "tokens": size.budget.digest}


def _mined(source: Source) -> dict[str, str]:
    """Modality -> hash of its table of mined negatives."""
    tables = {name: listing.table for name, listing in source.decoder.listings.items()}
    return {name: sha256(resolve(path)).hex() for name, path in tables.items() if path is not None}


def differences(
    saved: dict[str, Any],
    present: dict[str, Any],
    world_size: int,
    own_batch_sizes: Collection[str],
) -> list[str]:
    """The differences between two signatures, each with what to set.

    Args:
        saved: signature in a checkpoint.
        present: signature of this run.
        world_size: number of devices of this run.
        own_batch_sizes: the sources that do not follow ``data.batch_size``.
    """
    changes = [
        f"{key} was {saved[key]}, is {present[key]}: set data.{key}={saved[key]}"
        for key in ("seed", "block_shards")
        if saved[key] != present[key]
    ]
    for name in sorted(saved["sources"].keys() | present["sources"].keys()):
        then, now = saved["sources"].get(name), present["sources"].get(name)
        if then is None or now is None:
            changes.append(f"source {name!r} {'is new' if then is None else 'is gone'}")
        elif then["shards"] != now["shards"]:
            changes.append(
                f"source {name!r} had other shards ({then['samples']} samples, now "
                f"{now['samples']}): restore them, or start a new run"
            )
        elif (change := _other_tokens(name, then, now, world_size)) is not None:
            changes.append(change)
        elif then["batch_size"] != now["batch_size"]:
            own = f"sources.{name}." if name in own_batch_sizes else ""
            key = f"data.{own}batch_size"
            each, rest = divmod(then["batch_size"], world_size)
            remedy = f"set {key}={each}"
            if rest:
                remedy = f"use a number of devices that divides {then['batch_size']}"
            changes.append(
                f"the global batch of source {name!r} was {then['batch_size']}, is "
                f"{now['batch_size']} ({now['batch_size'] // world_size} on each of {world_size} "
                f"devices): {remedy}"
            )
        elif (change := _other_views(name, then, now)) is not None:
            changes.append(change)
        elif then.get("mined", {}) != now["mined"]:
            names = ", ".join(sorted(then.get("mined", {}).keys() | now["mined"].keys()))
            changes.append(
                f"source {name!r} had another table of mined negatives ({names}): restore it, or "
                "start a new run"
            )
        elif then["batches"] != now["batches"]:
            changes.append(
                f"source {name!r} had {then['batches']} batches an epoch, has {now['batches']}: "
                "restore repeat, weight, drop_last and epoch_steps"
            )
    return changes


def _other_views(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What to do where a source's cached views are others; None where they are not."""
    if then.get("views", {}) != now["views"]:
        return (
            f"source {name!r} had the cached views {then.get('views', {}) or 'none'}, has "
            f"{now['views'] or 'none'}: restore data.cache_frozen and cache_frozen.views"
        )
    if then.get("draws") != now.get("draws"):
        return (
            f"source {name!r} drew its cached views as earlier versions do: finish that run with "
            "the version that began it, or start a new one"
        )
    return None


def _other_tokens(
    name: str, then: Mapping[str, Any], now: Mapping[str, Any], world_size: int
) -> str | None:
    """What to set where batches are cut by other tokens; None where they are not."""
    if then.get("max_tokens") == now.get("max_tokens"):
        if then.get("tokens") == now.get("tokens"):
            return None
        return (
            f"the samples of source {name!r} had other numbers of tokens: restore the "
            "transforms' patch_size and max_tokens, or context_length"
        )
    each, rest = divmod(then.get("max_tokens") or 0, world_size)
    remedy = f"set data.max_tokens={each or 'null'}"
    if rest:
        remedy = f"use a number of devices that divides {then['max_tokens']}"
    said = [values.get("max_tokens") or "not limited" for values in (then, now)]
    return (
        f"the tokens of a global batch of source {name!r} were {said[0]}, are {said[1]} on "
        f"{world_size} devices: {remedy}"
    )
