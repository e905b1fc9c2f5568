"""Rules of the data: what its options require, and what a teacher adds to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem
from multimodal.config.rules.connected import is_connected
from multimodal.config.tree import at, block
from multimodal.core.names.modalities import TEACHER, side_name, teacher_of

_AFFINITY = ("multimodal.objectives.KLAffinity", "multimodal.objectives.SquaredAffinity")
Tree = dict[str, Any]


def frozen_towers_to_cache(tree: dict[str, Any]) -> Iterator[ConfigProblem]:
    """``data.cache_frozen`` needs a frozen tower, and ``cache_frozen.views`` needs it."""
    views, towers = at(tree, "cache_frozen.views"), block(tree, "model.towers")
    if at(tree, "data.cache_frozen") is not True:
        if views is not None:
            yield ConfigProblem("cache_frozen.views", "requires data.cache_frozen=true")
        if block(tree, "cache_frozen.views_of"):
            yield ConfigProblem("cache_frozen.views_of", "requires data.cache_frozen=true")
        return
    if isinstance(views, int) and views < 1:
        yield ConfigProblem("cache_frozen.views", f"must be at least 1, or null, given {views}")
    cached = sorted(name for name, tower in towers.items() if _is_frozen(tower))
    for name, count in block(tree, "cache_frozen.views_of").items():
        key = f"cache_frozen.views_of.{name}"
        if towers and name not in cached:
            have = f"{', '.join(cached)} {'have' if len(cached) > 1 else 'has'}"
            yield ConfigProblem(key, f"no frozen tower has this name; {have}")
        elif isinstance(count, int) and count < 1:
            yield ConfigProblem(key, f"must be at least 1, given {count}")
    teaches = at(tree, "anchor.teaches")
    if towers and not teaches and not any(_is_frozen(tower) for tower in towers.values()):
        yield ConfigProblem(
            "data.cache_frozen",
            "there is no tower with `frozen: true` or `frozen: encoder` to be cached",
        )


def standardized_features(tree: dict[str, Any]) -> Iterator[ConfigProblem]:
    """A head that standardises has a frozen encoder whose features are cached."""
    for name, tower in block(tree, "model.towers").items():
        if at(tower, "head.standardize") is True and not (
            at(tower, "frozen") == "encoder"
            and not is_connected(tower)  # its cached features are not its head's input
            and at(tree, "data.cache_frozen") is True
        ):
            yield ConfigProblem(
                f"model.towers.{name}.head.standardize",
                "needs `frozen: encoder` and data.cache_frozen=true, where its features are "
                "measured before training; head.norm needs neither",
            )


def _is_frozen(tower: Any) -> bool:
    """Whether a tower, its encoder, or the encoder that it connects, is frozen."""
    cached = is_connected(tower) and at(tower, "encoder.reads") == "features"
    return at(tower, "frozen") in (True, "encoder") or (
        cached and at(tower, "encoder.frozen") is not False
    )


def teachers_of_pairs(tree: Tree) -> Iterator[ConfigProblem]:
    """A side that is a teacher's, or is compared with one, is taught, or a tower of that name."""
    known = {TEACHER + name for name in _taught(tree)} | block(tree, "model.towers").keys()
    for name, pair in block(tree, "pairs").items():
        if not isinstance(pair, dict):
            continue
        for side in ("anchor", "other"):
            modality = pair.get(side)
            if not isinstance(modality, str | list):
                continue
            modality = side_name(modality)
            taught = teacher_of(modality)
            reads = modality.startswith(TEACHER) or _has_affinity(tree, pair)
            if reads and taught not in known:
                plain = taught.removeprefix(TEACHER)
                yield ConfigProblem(
                    f"pairs.{name}.{side}",
                    f"needs {taught}, which nothing gives: add {plain} to anchor.teaches "
                    "(+experiment=distill has an example)",
                )


def what_teachers_need(tree: Tree) -> Iterator[ConfigProblem]:
    """A teacher's embeddings are cached, of views that the student is given too, and read."""
    taught = _taught(tree)
    if taught and at(tree, "data.cache_frozen") is not True:
        yield ConfigProblem("anchor.teaches", "requires data.cache_frozen=true, which keeps them")
    elif taught and at(tree, "cache_frozen.views") is None:
        yield ConfigProblem(
            "anchor.teaches",
            "requires cache_frozen.views=K: teacher and student are given the same views",
        )
    read = {
        str(pair.get(side)).removeprefix(TEACHER)
        for pair in block(tree, "pairs").values()
        if isinstance(pair, dict)
        for side in ("anchor", "other")
        if str(pair.get(side)).startswith(TEACHER) or _has_affinity(tree, pair)
    }
    for name in taught:
        if name not in read:
            yield ConfigProblem("anchor.teaches", f"no pair reads {TEACHER}{name}: remove {name}")
        if TEACHER + name in block(tree, "model.towers"):
            yield ConfigProblem(
                "anchor.teaches", f"{TEACHER}{name} is a tower of this run as well: remove one"
            )


def _taught(tree: Tree) -> list[str]:
    given = at(tree, "anchor.teaches")
    return [str(name) for name in given] if isinstance(given, list) else []


def _has_affinity(tree: Tree, pair: Tree) -> bool:
    loss = pair.get("loss") or tree.get("loss")
    return any(str(at(loss, path)) in _AFFINITY for path in ("_target_", "loss._target_"))
