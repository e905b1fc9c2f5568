"""Everything that Hydra will build: do its parameters fit its signature?

A `_target_` in a YAML is the registry, so its signature is the schema. Two blind spots: keys that a
class accepts through ``**kwargs`` (some third-party ones do; ours never), and values that only a
constructor can validate.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from multimodal.config.annotations import hints_of, mismatches, signature_of
from multimodal.config.problems import ConfigProblem, did_you_mean
from multimodal.config.targets.judging import HYDRA_KEYS
from multimodal.config.targets.resolving import TargetError, allowed_packages, refused_name, resolve
from multimodal.config.tree import join, nodes

# Plain blocks that our own code turns into objects: the class is their schema. The parameters named
# beside it may be null or left out, the root's are taken then.
BUILT_BY_US = {
    "pairs.*": ("multimodal.objectives.Pair", ("loss", "negatives", "candidates")),
    "pairs.*.logit_scale": ("multimodal.objectives.LogitScale", ()),
    "evaluation.sets.*": ("multimodal.evaluation.EvaluationSet", ()),
}
# Groups of the root that the model is called with, in addition to its own block.
GIVEN_TO_MODEL = ("fusion", "tasks")


class Block(NamedTuple):
    """A block that something is built from; ``given`` are parameters that come from elsewhere."""

    where: str
    node: dict[str, Any]
    target: str
    optional: tuple[str, ...] = ()
    given: tuple[str, ...] = ()


def blocks(tree: dict[str, Any]) -> Iterator[Block]:
    """Every block with a `_target_`, and those that our own code builds from."""
    for where, node in nodes(tree):
        if isinstance(target := node.get("_target_"), str):
            given = [name for name in GIVEN_TO_MODEL if where == "model" and tree.get(name)]
            yield Block(where, node, target, given=tuple(given))
            continue
        for pattern, (path, optional) in BUILT_BY_US.items():
            if _matches(where, pattern):
                yield Block(where, node, path, optional)


def _matches(where: str, pattern: str) -> bool:
    path, parts = where.replace("[", ".").replace("]", "").split("."), pattern.split(".")
    return len(path) == len(parts) and all(
        part in ("*", key) for key, part in zip(path, parts, strict=True)
    )


def invalid_arguments(tree: dict[str, Any]) -> Iterator[ConfigProblem]:
    """Binds the keys of every block to the signature of what it builds."""
    packages, reported = allowed_packages(tree.get("allowed_packages")), set()
    for block in blocks(tree):
        if refused_name(block.target, packages):
            continue
        try:
            built = resolve(block.target, packages)
        except TargetError as error:
            if str(error) not in reported:  # report a module that does not import once
                yield ConfigProblem(join(block.where, "_target_"), str(error))
            reported.add(str(error))
        else:
            yield from _against_signature(block, built)


def _against_signature(block: Block, built: Any) -> Iterator[ConfigProblem]:
    where, node, target, optional, given = block
    parameters = parameters_of(built)
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    positional = node.get("_args_") or ()
    filled = set(list(named)[: len(positional)]) | node.keys()
    swallows = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = hints_of(built)
    for key, value in node.items():
        if key in HYDRA_KEYS:
            continue
        if key in named:
            # A null default makes an Optional, also of a parameter that is not annotated as one.
            if value is not None or (key not in optional and named[key].default is not None):
                yield from mismatches(value, hints.get(key, Any), join(where, key))
        elif not swallows:
            guess = did_you_mean(key, [*named, *HYDRA_KEYS] if key.startswith("_") else named)
            yield ConfigProblem(join(where, key), f"{target} has no parameter '{key}'; {guess}")
    for name in given:
        if name not in named and not swallows:
            yield ConfigProblem(
                name, f"{target} has no {name}; a model that fuses has, or write ~{name}"
            )
    if node.get("_partial_") is True:
        return
    filled |= set(given)
    for name, parameter in named.items():
        if name not in filled and parameter.default is parameter.empty and name not in optional:
            yield ConfigProblem(where, f"{target} needs '{name}', which is not given")


def parameters_of(built: Any) -> dict[str, inspect.Parameter]:
    """What may be passed to a class or function, by name."""
    try:
        return dict(signature_of(built).parameters)
    except (TypeError, ValueError):  # builtins may have none
        anything = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
        return {"kwargs": anything}
