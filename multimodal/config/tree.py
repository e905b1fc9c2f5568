"""A configuration as plain dicts and lists, and paths in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from multimodal.config.problems import ConfigProblem, nearest


class _Unknown:
    def __repr__(self) -> str:
        return "?"


UNKNOWN: Final = _Unknown()
"""A value that is unknown here: missing (reported once), or resolved only inside a job."""

_ONLY_IN_A_JOB = ("hydra", "now")


def plain(cfg: DictConfig) -> tuple[dict[str, Any], list[ConfigProblem]]:
    """Dicts, lists and values of ``cfg``, and its missing values and broken interpolations."""
    problems: list[ConfigProblem] = []

    def convert(node: DictConfig | ListConfig, where: str) -> Any:
        if isinstance(node, DictConfig):
            return {str(key): value(node, key, join(where, str(key))) for key in node}
        return [value(node, index, f"{where}[{index}]") for index in range(len(node))]

    def value(parent: Any, key: Any, where: str) -> Any:
        raw = parent._get_node(key)
        if not (raw._is_missing() or raw._is_interpolation()):  # most: no way round by the parent
            if isinstance(raw, DictConfig | ListConfig):
                return None if raw._is_none() else convert(raw, where)
            return raw._value()
        if OmegaConf.is_missing(parent, key) and not OmegaConf.is_interpolation(parent, key):
            problems.append(ConfigProblem(where, "has no value yet ('???'): set one"))
            return UNKNOWN
        try:
            resolved = parent[key]
        except InterpolationToMissingValueError:
            return UNKNOWN
        except OmegaConfBaseException as error:
            text = str(raw._value())
            if not any(f"${{{name}:" in text for name in _ONLY_IN_A_JOB):
                problems.append(ConfigProblem(where, _broken(text, error, keys(cfg))))
            return UNKNOWN
        if isinstance(resolved, DictConfig | ListConfig):
            return convert(resolved, where)
        return resolved

    return convert(cfg, ""), problems


def _broken(text: str, error: Exception, known: Iterator[str]) -> str:
    name = text.removeprefix("${").removesuffix("}")
    reason = str(error).splitlines()[0]
    close = nearest(name, known) if re.fullmatch(r"[\w.]+", name) else []
    guess = f"; did you mean '{close[0]}'?" if close and close[0] != name else ""
    return f"given {text}, which cannot be resolved: {reason}{guess}"


def join(where: str, key: str) -> str:
    """The dotted path of ``key`` under ``where``."""
    return f"{where}.{key}" if where else key


def keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """The dotted paths of all keys, blocks before what they hold."""
    for key in cfg:
        path = join(prefix, str(key))
        yield path
        node: Any = cfg._get_node(key)
        special = node._is_none() or node._is_missing() or node._is_interpolation()
        if isinstance(node, DictConfig) and not special:
            yield from keys(node, path)


def nodes(value: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dict in ``value`` with its path, outer ones first."""
    if isinstance(value, dict):
        yield where, value
        for key, child in value.items():
            yield from nodes(child, join(where, str(key)))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from nodes(child, f"{where}[{index}]")


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in ``value`` that is not a dict or list, with its path."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, join(where, str(key)))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from leaves(child, f"{where}[{index}]")
    else:
        yield where, value


def at(tree: Any, path: str) -> Any:
    """The value at a dotted ``path`` of dicts, or None."""
    for key in path.split("."):
        if not isinstance(tree, dict):
            return None
        tree = tree.get(key)
    return tree


def block(tree: Any, path: str) -> dict[str, Any]:
    """The dict at ``path``, empty if there is none: other rules report what is wrong there."""
    node = at(tree, path)
    return node if isinstance(node, dict) else {}
