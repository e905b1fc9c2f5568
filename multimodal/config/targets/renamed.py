"""Old names of classes in configurations, so that those of earlier versions still work."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override

from multimodal.core.imports.former import renamed

Node = TypeVar("Node")


def with_new_names(node: Node) -> Node:
    """A configuration, or plain dicts and lists, with the present path in every `_target_`."""
    if not isinstance(node, DictConfig | ListConfig):
        return _plain(node)  # type: ignore[no-any-return]
    if not any(renamed(target) != target for target in _targets(node)):
        return node
    copied = copy.deepcopy(node)
    copied._set_parent(node._get_parent())
    with flag_override(copied, ["readonly", "struct"], [False, False]):
        _in_place(copied)
    return copied


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        new = {key: _plain(value) for key, value in node.items()}
        if isinstance(target := new.get("_target_"), str):
            new["_target_"] = renamed(target)
        return new
    return [_plain(item) for item in node] if isinstance(node, list) else node


def _children(node: Any) -> list[tuple[Any, Any]]:
    """(key, node) of what a block holds, interpolations left as they are."""
    if not isinstance(node, DictConfig | ListConfig):
        return []
    if node._is_none() or node._is_missing() or node._is_interpolation():
        return []
    keys: Any = node.keys() if isinstance(node, DictConfig) else range(len(node))
    return [(key, node._get_node(key)) for key in keys]


def _targets(node: Any) -> list[str]:
    targets = []
    for key, child in _children(node):
        targets += _targets(child)
        if key == "_target_" and isinstance(child._value(), str):
            targets.append(child._value())
    return targets


def _in_place(node: Any) -> None:
    for key, child in _children(node):
        _in_place(child)
        if key == "_target_" and isinstance(child._value(), str):
            OmegaConf.update(node, "_target_", renamed(child._value()))
