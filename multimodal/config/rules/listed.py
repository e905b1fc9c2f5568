"""Rules of listed negatives: what lists them has a loss that compares with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem
from multimodal.config.tree import at, block

Tree = dict[str, Any]
_TARGETS = tuple(
    f"multimodal.objectives.{name}"
    for name in ("CosineTarget", "SquaredTarget", "KLAffinity", "SquaredAffinity")
)


def listed_negatives_are_used(tree: Tree) -> Iterator[ConfigProblem]:
    """A modality with ``negatives`` has a pair whose loss has negatives, outside of a fusion."""
    pairs = [pair for pair in block(tree, "pairs").values() if isinstance(pair, dict)]
    for name, source in block(tree, "data.sources").items():
        for modality, entry in block(source, "modalities").items():
            if at(entry, "negatives") is None:
                continue
            where = f"data.sources.{name}.modalities.{modality}.negatives"
            if tree.get("tasks"):
                yield ConfigProblem(
                    where,
                    "a fusion's pairs do not read listed negatives; remove them, or train towers "
                    "without tasks",
                )
            elif pairs and not any(_compares(tree, pair, modality) for pair in pairs):
                yield ConfigProblem(
                    where,
                    f"no pair of {modality} compares with negatives: cosine, mse and affinity "
                    "read none; add a pair with another loss, or remove these",
                )


def own_negatives_of_streams(tree: Tree) -> Iterator[ConfigProblem]:
    """A stream knows no other samples."""
    for name, source in block(tree, "data.sources").items():
        if not isinstance(source, dict) or "urls" not in source:
            continue
        for modality, entry in block(source, "modalities").items():
            for kind in ("samples", "table"):
                if at(entry, f"negatives.{kind}") is not None:
                    yield ConfigProblem(
                        f"data.sources.{name}.modalities.{modality}.negatives.{kind}",
                        "a stream cannot read other samples by their keys; index the shards and "
                        "take data=shards, or list texts (key) or files (member)",
                    )


def _compares(tree: Tree, pair: Tree, modality: str) -> bool:
    loss = pair.get("loss") or tree.get("loss")
    target = loss.get("_target_") if isinstance(loss, dict) else None
    return modality in (pair.get("anchor"), pair.get("other")) and target not in _TARGETS
