"""Everything that Hydra will build: may it be imported, and do its parameters fit its signature?

A `_target_` in a YAML is the registry, so its signature is the schema. Two blind spots: keys that
a class swallows by ``**kwargs`` (some third-party ones do; ours never), and values that only a
constructor can judge.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from multimodal.config.faults import Fault, did_you_mean
from multimodal.config.tree import join, nodes
from multimodal.config.values import mismatches

ALLOWED = ("multimodal", "torch.nn", "torch.optim", "pytorch_lightning")
# Where classes that the allowed packages offer under their own names are really defined.
_HOMES = {"pytorch_lightning": ("lightning_fabric",)}
HYDRA_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")

# Plain blocks that our own code turns into objects: the class is their schema. The parameters named
# beside it may be null or left out, the root's are taken then.
BUILT_BY_US = {
    "pairs.*": ("multimodal.objectives.pair.Pair", ("loss", "negatives", "candidates")),
    "pairs.*.logit_scale": ("multimodal.objectives.pair.LogitScale", ()),
    "evaluation.sets.*": ("multimodal.evaluation.sets.EvaluationSet", ()),
}
# Groups of the root that the model is called with, beside what stands in its own block.
GIVEN_TO_MODEL = ("fusion", "tasks")


def allowed_packages(tree: dict[str, Any]) -> tuple[str, ...]:
    """The packages that a `_target_` may come from: ours, and those the configuration names."""
    own = tree.get("allowed_packages")
    return (*ALLOWED, *(str(name) for name in own)) if isinstance(own, list) else ALLOWED


def _inside(path: str, packages: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in packages)


def foreign_targets(tree: dict[str, Any]) -> Iterator[Fault]:
    """Refuses, before importing anything, a `_target_` from outside the allowed packages."""
    packages = allowed_packages(tree)
    for where, node in nodes(tree):
        target = node.get("_target_")
        if "_target_" not in node or (isinstance(target, str) and _inside(target, packages)):
            continue
        yield Fault(
            join(where, "_target_"),
            f"given {target!r}, expected a class or function of {', '.join(packages)}; "
            "add a package that you trust to allowed_packages",
        )


class TargetError(ValueError):
    """A `_target_` that does not lead to an allowed class or function."""


@functools.cache
def resolve(target: str, packages: tuple[str, ...]) -> Any:
    """The class or function at a dotted path.

    Raises:
        TargetError: if it is not there, or was only imported there from a foreign package.
    """
    if not _inside(target, packages):
        raise TargetError(f"'{target}' is outside of {', '.join(packages)}")
    module_name, found = "", None
    for part in target.split("."):
        path = f"{module_name}.{part}" if module_name else part
        if found is not None and not isinstance(found, ModuleType):
            found, module_name = _member(found, part, path), path
            continue
        try:
            found, module_name = importlib.import_module(path), path
        except Exception as error:  # a package of the user's own may fail in any way
            if isinstance(error, ModuleNotFoundError) and error.name == path and found:
                found, module_name = _member(found, part, path), path
            else:
                raise TargetError(f"'{path}' cannot be imported: {error}") from error
    homes = [home for name in packages if _inside(target, [name]) for home in _HOMES.get(name, ())]
    if isinstance(found, ModuleType) or not callable(found):
        raise TargetError(f"'{target}' is no class or function")
    if not _inside(str(getattr(found, "__module__", "")), [*packages, *homes]):
        raise TargetError(f"'{target}' is only imported there, from '{found.__module__}'")
    return found


def _member(owner: Any, name: str, path: str) -> Any:
    if hasattr(owner, name) and not name.startswith("_"):
        return getattr(owner, name)
    names = [n for n in dir(owner) if not n.startswith("_")]
    if isinstance(owner, ModuleType) and hasattr(owner, "__path__"):
        names += [module.name for module in pkgutil.iter_modules(owner.__path__)]
    where = path.rpartition(".")[0]
    raise TargetError(f"'{where}' has no '{name}'; {did_you_mean(name, names)}")


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


def unbound(tree: dict[str, Any]) -> Iterator[Fault]:
    """Binds the keys of every block to the signature of what it builds."""
    packages, told = allowed_packages(tree), set()
    for block in blocks(tree):
        if not _inside(block.target, packages):
            continue
        try:
            built = resolve(block.target, packages)
        except TargetError as error:
            if str(error) not in told:  # a module that does not import is one fault, not many
                yield Fault(join(block.where, "_target_"), str(error))
            told.add(str(error))
        else:
            yield from _against_signature(block, built)


def _against_signature(block: Block, built: Any) -> Iterator[Fault]:
    where, node, target, optional, given = block
    parameters = _parameters(built)
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    positional = node.get("_args_") or ()
    filled = set(list(named)[: len(positional)]) | node.keys()
    swallows = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = _hints(built)
    for key, value in node.items():
        if key in HYDRA_KEYS:
            continue
        if key in named:
            # A null default makes an Optional, also of a parameter that is not annotated as one.
            if value is not None or (key not in optional and named[key].default is not None):
                yield from mismatches(value, hints.get(key, Any), join(where, key))
        elif not swallows:
            guess = did_you_mean(key, [*named, *HYDRA_KEYS] if key.startswith("_") else named)
            yield Fault(join(where, key), f"{target} has no parameter '{key}'; {guess}")
    for name in given:
        if name not in named and not swallows:
            yield Fault(name, f"{target} has no {name}; a model that fuses has, or write ~{name}")
    if node.get("_partial_") is True:
        return
    filled |= set(given)
    for name, parameter in named.items():
        if name not in filled and parameter.default is parameter.empty and name not in optional:
            yield Fault(where, f"{target} needs '{name}', which is not given")


def _parameters(built: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(built).parameters)
    except (TypeError, ValueError):  # builtins may have none
        anything = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
        return {"kwargs": anything}


def _hints(built: Any) -> dict[str, Any]:
    try:
        init = inspect.getattr_static(built, "__init__") if inspect.isclass(built) else built
        return typing.get_type_hints(init)
    except Exception:  # names under TYPE_CHECKING, say: then the constructor judges
        return {}


def defaults_bound(cfg: DictConfig) -> DictConfig:
    """A copy of ``cfg`` in which every block holds all parameters of what it builds.

    Saved with a run, it tells what the run did, whatever the defaults become later. Defaults
    that are no plain values (functions, objects) stay out.
    """
    tree: Any = OmegaConf.to_container(cfg, resolve=False)
    bound: DictConfig = OmegaConf.create(tree)
    packages = allowed_packages(tree)
    for where, node, target, _, given in blocks(tree):
        for name, parameter in _parameters(resolve(target, packages)).items():
            if name not in (*node, *given) and _is_plain(parameter.default):
                _select(bound, where)[name] = _listed(parameter.default)
    return bound


def _select(cfg: DictConfig, where: str) -> Any:
    node: Any = cfg
    for key in where.replace("[", ".[").split(".") if where else []:
        node = node[int(key[1:-1])] if key.startswith("[") else node[key]
    return node


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value
