"""Rules about which parts of a tower are trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem
from multimodal.config.tree import at, block

Tree = dict[str, Any]


def frozen_or_tuned(tree: Tree) -> Iterator[ConfigProblem]:
    """A tower is frozen, or part of it is trained: not both."""
    for name, tower in block(tree, "model.towers").items():
        if isinstance(tower, dict) and tower.get("frozen") and tower.get("tuning"):
            where = f"model.towers.{name}"
            yield ConfigProblem(
                where, "is frozen and has a tuning; set `frozen: false` or `tuning: null`"
            )


def frozen_towers_are_aligned(tree: Tree) -> Iterator[ConfigProblem]:
    """Two frozen towers of a pair were trained together, which only an anchor provides."""
    towers, anchored = block(tree, "model.towers"), at(tree, "anchor.towers")
    anchored = anchored if isinstance(anchored, list) else []
    for pair in block(tree, "pairs").values():
        sides = [pair.get(side) for side in ("anchor", "other")] if isinstance(pair, dict) else []
        if any(isinstance(side, list) for side in sides):
            continue  # a joint embedding learns
        frozen = [str(side) for side in sides if at(towers, f"{side}.frozen") is True]
        loose = [side for side in frozen if side not in anchored]
        if at(pair, "logit_scale.learned") is False:
            continue  # nothing to learn at all, which another rule reports
        if len(frozen) == 2 and loose:
            both = " and ".join(frozen)
            yield ConfigProblem(
                f"model.towers.{loose[-1]}.frozen",
                f"the towers {both} are frozen, but were never trained together: a model like "
                "DINOv2 has no text tower. Train one of them "
                f"(model.towers.{loose[-1]}.frozen=false, as LiT does), or take both from one "
                "anchor",
            )
