"""Rules of joint embeddings: several modalities of a sample as one side of a pair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem, did_you_mean
from multimodal.config.rules.connected import is_connected
from multimodal.config.tree import at, block
from multimodal.core.names.modalities import TOGETHER, joint_name

Tree = dict[str, Any]
FUSED, TEMPLATE = "multimodal.models.FusedJoint", "multimodal.models.TemplateJoint"


def listed(side: Any) -> list[str] | None:
    """The modalities of a side that is a list of names; None for any other."""
    named = isinstance(side, list) and all(isinstance(name, str) for name in side)
    return side if named else None


def joint_names(tree: Tree) -> list[str]:
    """What the joint embeddings of ``model.joint`` are called."""
    entries = (listed(at(e, "modalities")) for e in block(tree, "model.joint").values())
    return [joint_name(modalities) for modalities in entries if modalities]


def joint_embeddings(tree: Tree) -> Iterator[ConfigProblem]:
    """A joint embedding is of two or more modalities with towers, and there is one of each set."""
    towers, seen = block(tree, "model.towers"), dict[str, str]()
    for name in towers:
        if TOGETHER in str(name):
            yield ConfigProblem(
                f"model.towers.{name}",
                f"'{TOGETHER}' stands for several modalities together (model.joint): leave it out",
            )
    for key, entry in block(tree, "model.joint").items():
        where, modalities = f"model.joint.{key}.modalities", listed(at(entry, "modalities"))
        if modalities is None:
            continue
        if len(set(modalities)) < 2 or len(set(modalities)) < len(modalities):
            yield ConfigProblem(where, f"given {modalities}, expected two or more, once each")
        for modality in modalities:
            if towers and modality not in towers:
                yield ConfigProblem(
                    where, f"no tower '{modality}'; {did_you_mean(modality, towers)}"
                )
        name = joint_name(modalities)
        if name in seen:
            yield ConfigProblem(where, f"model.joint.{seen[name]} is of the same modalities")
        seen.setdefault(name, str(key))


def joint_sides_of_pairs(tree: Tree) -> Iterator[ConfigProblem]:
    """A side that lists modalities has a joint embedding of them."""
    for name, pair in block(tree, "pairs").items():
        for side in ("anchor", "other"):
            if isinstance(pair, dict) and (modalities := listed(pair.get(side))) is not None:
                yield from _has_joint(tree, f"pairs.{name}.{side}", modalities)


def joint_queries(tree: Tree) -> Iterator[ConfigProblem]:
    """So has a side of a retrieval, whose set carries the modalities."""
    for name, entry in block(tree, "evaluation.sets").items():
        asked = entry.get("retrieval") if isinstance(entry, dict) else None
        carried = block(entry, "source.modalities") if isinstance(entry, dict) else {}
        for index, pair in enumerate(asked if isinstance(asked, list) else ()):
            for side in pair if isinstance(pair, list) else ():
                if (modalities := listed(side)) is None:
                    continue
                where = f"evaluation.sets.{name}.retrieval[{index}]"
                for missing in [m for m in modalities if carried and m not in carried]:
                    guess = did_you_mean(missing, carried)
                    yield ConfigProblem(where, f"the set's source has no '{missing}'; {guess}")
                if block(tree, "model.towers"):
                    yield from _has_joint(tree, where, modalities)


def _has_joint(tree: Tree, where: str, modalities: list[str]) -> Iterator[ConfigProblem]:
    if joint_name(modalities) in joint_names(tree):
        return
    both, listed_ = " and ".join(modalities), ", ".join(modalities)
    if tree.get("fusion") is not None:
        yield ConfigProblem(
            where,
            f"a model with a fusion has no joint embedding of {both}: leave the fusion out, and "
            f"add model.joint.NAME (group joint) with modalities: [{listed_}]",
        )
        return
    yield ConfigProblem(
        where,
        f"the model has no joint embedding of {both}: add one, "
        f"+joint@model.joint.NAME=gated model.joint.NAME.modalities=[{listed_}]",
    )


def joint_templates(tree: Tree) -> Iterator[ConfigProblem]:
    """A template is of modalities that are connected to its backbone, or of the backbone itself."""
    towers = block(tree, "model.towers")
    for key, entry in block(tree, "model.joint").items():
        if not isinstance(entry, dict) or entry.get("_target_") != TEMPLATE:
            continue
        backbone = str(entry.get("backbone", "text"))
        for modality in listed(entry.get("modalities")) or ():
            named = towers.get(modality)
            named = named if isinstance(named, str) else modality  # or the one it shares
            tower = towers.get(named)
            own = str(at(tower, "encoder.backbone") or "text") if is_connected(tower) else named
            if modality in towers and own != backbone:
                yield ConfigProblem(
                    f"model.joint.{key}.modalities",
                    f"the tower {modality} is not connected to the language model of {backbone}: "
                    f"set tower@model.towers.{modality}=connected, or take "
                    f"joint@model.joint.{key}=gated",
                )
