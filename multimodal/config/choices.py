"""Do loss, negatives and candidates of every pair go together? Their classes say, this asks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from multimodal.config.problems import ConfigProblem
from multimodal.config.targets.resolving import ALLOWED, TargetError, allowed_packages, resolve
from multimodal.config.tree import block

CHOICES = ("loss", "negatives", "candidates")
_COMPATIBLE = "multimodal.objectives.compatible"  # found as a target is: see `kinds.PLACES`


def incompatible_choices(
    tree: dict[str, Any], problems: Sequence[ConfigProblem]
) -> Iterator[ConfigProblem]:
    """Asks `compatible` about the classes of every pair's choices; nothing is instantiated.

    Args:
        tree: the configuration.
        problems: those found so far; a pair whose choices have one is not asked about.
    """
    packages = allowed_packages(tree.get("allowed_packages"))
    for name, pair in block(tree, "pairs").items():
        if not isinstance(pair, dict):
            continue
        nodes, classes = [], []
        for choice in CHOICES:
            where = f"pairs.{name}.{choice}" if pair.get(choice) else choice
            node = pair.get(choice) or tree.get(choice)
            built = _class_of(node, packages)
            if built is None or any(problem.where.startswith(where) for problem in problems):
                break
            nodes.append(node)
            classes.append(built)
        else:
            compatible = resolve(_COMPATIBLE, ALLOWED)
            gives = _gives(nodes[1], packages)
            if reason := compatible(*classes, gives=gives, **_of_similarity(tree, packages)):
                yield ConfigProblem(f"pairs.{name}", str(reason))


def _of_similarity(tree: dict[str, Any], packages: tuple[str, ...]) -> dict[str, bool]:
    """What is to know of the similarity: whether it is of tokens, and from -1 to 1."""
    node = block(tree, "similarity")
    per_token = getattr(_class_of(node, packages), "per_token", False) is True
    return {"per_token": per_token, "bounded": not per_token or node.get("reduction") != "sum"}


def _class_of(node: Any, packages: tuple[str, ...]) -> type | None:
    """The class of a block; None if it names none, which is reported elsewhere."""
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        return None
    try:
        resolved = resolve(node["_target_"], packages)
    except TargetError:
        return None
    return resolved if inspect.isclass(resolved) else None


def _gives(node: Any, packages: tuple[str, ...]) -> str | None:
    """The log weights that a strategy gives; a wrapper gives what the one that it wraps does."""
    built = _class_of(node, packages)
    if built is None:
        return None
    given = inspect.getattr_static(built, "gives", None)
    if isinstance(given, str):
        return given
    wrapped = (_gives(child, packages) for child in node.values())
    return next((each for each in wrapped if each is not None), None)
