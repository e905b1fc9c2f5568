"""Rules of self-distillation: its towers are there and learn, and patches can be hidden."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem, did_you_mean
from multimodal.config.tree import at, block

Tree = dict[str, Any]
KEY = "self_distillation"
VIT = "multimodal.models.VisionTransformer"
WITH_PATCHES = (VIT, "multimodal.models.VideoTransformer")
PACKED = "multimodal.models.FlexibleVisionTransformer"


def self_distilled_towers(tree: Tree) -> Iterator[ConfigProblem]:
    """The towers of ``self_distillation`` have an encoder of their own that learns from inputs."""
    given, towers = block(tree, KEY), block(tree, "model.towers")
    names = given.get("modalities")
    if not isinstance(names, list) or not towers:
        return
    where = f"{KEY}.modalities"
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
            f"{KEY}.modalities",
            f"{name} is given as patches of any number, and crops are cut from pictures of one "
            "size: leave it out, or take a VisionTransformer",
        )
        return
    if hidden and ours and target not in WITH_PATCHES:
        yield ConfigProblem(
            f"{KEY}.hidden",
            f"patches are hidden from a VisionTransformer, and {name} has another encoder: null, "
            f"or another tower (tower@model.towers.{name}=vit_b16)",
        )
    elif hidden and at(tower, "encoder.patch_dropout"):
        yield ConfigProblem(
            f"model.towers.{name}.encoder.patch_dropout",
            f"leaves out patches that {KEY}.hidden wants predicted: 0, or {KEY}.hidden=null",
        )
    if at(given, "local.size") is not None and ours and target != VIT:
        yield ConfigProblem(
            f"{KEY}.local.size",
            f"only a VisionTransformer takes crops of another size, and {name} has another "
            "encoder: null, which resizes them to the view's",
        )
