"""Rules of the data: what its options require."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem
from multimodal.config.rules.connected import is_connected
from multimodal.config.tree import at, block


def frozen_towers_to_cache(tree: dict[str, Any]) -> Iterator[ConfigProblem]:
    """``data.cache_frozen`` needs a frozen tower, and ``cache_frozen.views`` needs it."""
    views, towers = at(tree, "cache_frozen.views"), block(tree, "model.towers")
    if at(tree, "data.cache_frozen") is not True:
        if views is not None:
            yield ConfigProblem("cache_frozen.views", "requires data.cache_frozen=true")
        return
    if isinstance(views, int) and views < 1:
        yield ConfigProblem("cache_frozen.views", f"must be at least 1, or null, given {views}")
    if towers and not any(_is_frozen(tower) for tower in towers.values()):
        yield ConfigProblem(
            "data.cache_frozen",
            "there is no tower with `frozen: true` or `frozen: encoder` to be cached",
        )


def standardized_features(tree: dict[str, Any]) -> Iterator[ConfigProblem]:
    """A head that standardises has a frozen encoder whose features are cached."""
    for name, tower in block(tree, "model.towers").items():
        if at(tower, "head.standardize") is True and not (
            at(tower, "frozen") == "encoder"
            and not is_connected(tower)  # what is cached of it is not what its head gets
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
