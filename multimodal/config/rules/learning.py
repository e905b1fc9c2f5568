"""Rules about what of a tower is trained, and that it can learn from itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem, did_you_mean
from multimodal.config.tree import at, block

Tree = dict[str, Any]
SELF = "self_distillation"
VIT = "multimodal.models.VisionTransformer"
WITH_PATCHES = (VIT, "multimodal.models.VideoTransformer")
PACKED = "multimodal.models.FlexibleVisionTransformer"


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


def self_distilled_towers(tree: Tree) -> Iterator[ConfigProblem]:
    """The towers of ``self_distillation`` have an encoder of their own that learns from inputs."""
    given, towers = block(tree, SELF), block(tree, "model.towers")
    names = given.get("modalities")
    if not isinstance(names, list) or not towers:
        return
    where = f"{SELF}.modalities"
    for name in names:
        tower = towers.get(name)
        if name not in towers:
            yield ConfigProblem(where, f"no tower '{name}'; {did_you_mean(str(name), towers)}")
        elif at(tower, "frozen") not in (None, False):
            yield ConfigProblem(
                where, f"the tower {name} is frozen and learns nothing: leave it out, or train it"
            )
        elif isinstance(tower, dict):
            yield from _hidden_patches(given, str(name), tower)


def _hidden_patches(given: Tree, name: str, tower: Tree) -> Iterator[ConfigProblem]:
    target = at(tower, "encoder._target_")
    ours = isinstance(target, str) and target.startswith("multimodal.")
    hidden = isinstance(given.get("hidden"), dict)
    if target == PACKED:
        yield ConfigProblem(
            f"{SELF}.modalities",
            f"{name} is given as patches of any number, and crops are cut from pictures of one "
            "size: leave it out, or take a VisionTransformer",
        )
        return
    if hidden and ours and target not in WITH_PATCHES:
        yield ConfigProblem(
            f"{SELF}.hidden",
            f"patches are hidden from a VisionTransformer, and {name} has another encoder: null, "
            f"or another tower (tower@model.towers.{name}=vit_b16)",
        )
    elif hidden and at(tower, "encoder.patch_dropout"):
        yield ConfigProblem(
            f"model.towers.{name}.encoder.patch_dropout",
            f"leaves out patches that {SELF}.hidden wants predicted: 0, or {SELF}.hidden=null",
        )
    if at(given, "local.size") is not None and ours and target != VIT:
        yield ConfigProblem(
            f"{SELF}.local.size",
            f"only a VisionTransformer takes crops of another size, and {name} has another "
            "encoder: null, which resizes them to the view's",
        )
