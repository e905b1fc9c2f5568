"""From a dotted path to the class or function that it names; nothing is called."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from multimodal.config.problems import did_you_mean
from multimodal.core.imports.former import renamed

ALLOWED = ("multimodal", "torch.nn", "torch.optim", "pytorch_lightning")
# Where classes that the allowed packages re-export are defined.
_HOMES = {"pytorch_lightning": ("lightning_fabric",)}


class TargetError(ValueError):
    """A `_target_` that is not an allowed class or function."""


def allowed_packages(own: Any) -> tuple[str, ...]:
    """The packages that a `_target_` may come from: ours, and those of the key of that name."""
    return (*ALLOWED, *(str(name) for name in own)) if isinstance(own, list | tuple) else ALLOWED


def inside(path: str, packages: Sequence[str]) -> bool:
    """Whether a dotted path is one of the packages or lies in one."""
    return any(path == name or path.startswith(f"{name}.") for name in packages)


def is_own(resolved: Any, packages: Sequence[str]) -> bool:
    """Whether a class or function is defined in a package that was added to ours."""
    return inside(str(resolved.__module__), [name for name in packages if name not in ALLOWED])


def refused_name(target: Any, packages: Sequence[str]) -> str | None:
    """Why a target is refused by its name alone, before anything is imported; None if it is not."""
    if not isinstance(target, str) or not inside(target, packages):
        return (
            f"given {target!r}, expected a class or function of {', '.join(packages)}; "
            "add a package that you trust to allowed_packages"
        )
    beyond = next(target.removeprefix(name) for name in packages if inside(target, [name]))
    for part in beyond.split(".")[1:]:
        if not part.isidentifier() or part.startswith("_"):
            return f"given '{target}', but '{part}' is not a public name"
    return None


@functools.cache
def resolve(target: str, packages: tuple[str, ...]) -> Any:
    """The class or function at a dotted path, found as Hydra finds it.

    Raises:
        TargetError: if it is not there, is a method, or was only imported there.
    """
    target = renamed(target)
    if reason := refused_name(target, packages):
        raise TargetError(reason)
    resolved: Any = None
    path = ""
    for part in target.split("."):
        owner, path = resolved, f"{path}.{part}" if path else part
        resolved = _step(owner, part, path)
        if isinstance(resolved, ModuleType) and resolved.__name__ != path:
            raise TargetError(f"'{path}' is only imported there: it is '{resolved.__name__}'")
        if inspect.isclass(owner) and not inspect.isclass(resolved):
            raise TargetError(f"'{target}' is a method: expected a class or a function")
    if not (inspect.isclass(resolved) or inspect.isfunction(resolved)):
        raise TargetError(f"'{target}' is not a class or function")
    _require_home(target, resolved, packages)
    return resolved


def _step(owner: Any, part: str, path: str) -> Any:
    """What a name leads to: an attribute, or else a module that is imported."""
    if owner is not None and not isinstance(owner, ModuleType):
        if inspect.isclass(owner) and inspect.getattr_static(owner, part, None) is not None:
            return inspect.getattr_static(owner, part)
        raise _absent(owner, part, path)
    try:
        if owner is not None and hasattr(owner, part):
            return getattr(owner, part)
        return importlib.import_module(path)
    except Exception as error:  # a user's package may fail in any way
        if isinstance(error, ModuleNotFoundError) and error.name == path and owner is not None:
            raise _absent(owner, part, path) from error
        raise TargetError(f"'{path}' cannot be imported: {error}") from error


def _require_home(target: str, resolved: Any, packages: Sequence[str]) -> None:
    """Refuses targets defined in another package, or passed off as defined in this one."""
    reached = [name for name in packages if inside(target, [name])]
    homes = [home for name in reached for home in _HOMES.get(name, ())]
    if not inside(str(resolved.__module__), [*reached, *homes]):
        raise TargetError(f"'{target}' is only imported there, from '{resolved.__module__}'")
    at_home: Any = sys.modules.get(resolved.__module__)
    for part in resolved.__qualname__.split("."):
        at_home = getattr(at_home, part, None)
    if at_home is not resolved and inspect.isfunction(resolved):
        raise TargetError(f"'{target}' is not what '{resolved.__module__}' defines by that name")


def _absent(owner: Any, name: str, path: str) -> TargetError:
    names = [n for n in dir(owner) if not n.startswith("_")]
    if isinstance(owner, ModuleType) and hasattr(owner, "__path__"):
        names += [module.name for module in pkgutil.iter_modules(owner.__path__)]
    return TargetError(f"'{path.rpartition('.')[0]}' has no '{name}'; {did_you_mean(name, names)}")
