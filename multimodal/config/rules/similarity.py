"""Rules of late interaction: what compares tokens needs them everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem, did_you_mean
from multimodal.config.tree import at, block

Tree = dict[str, Any]
MAX_SIM = "multimodal.objectives.MaxSim"


def late_interaction(tree: Tree) -> Iterator[ConfigProblem]:
    """``similarity=maxsim`` has towers that give tokens at every step, and a query among them."""
    if at(tree, "similarity._target_") != MAX_SIM:
        return
    if isinstance(tree.get("fusion"), dict):
        yield ConfigProblem(
            "similarity", "a fusion's pairs compare pooled embeddings: take similarity=cosine"
        )
    if at(tree, "data.cache_frozen") is True:
        yield ConfigProblem(
            "data.cache_frozen",
            "keeps pooled features, but similarity=maxsim compares tokens: false",
        )
    if block(tree, "model.joint"):
        yield ConfigProblem(
            "model.joint", "is of pooled embeddings, but similarity=maxsim compares tokens"
        )
    query, towers = at(tree, "similarity.query"), block(tree, "model.towers")
    if isinstance(query, str) and towers and query not in towers:
        yield ConfigProblem(
            "similarity.query", f"no tower '{query}'; {did_you_mean(query, towers)}"
        )
