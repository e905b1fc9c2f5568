"""The single entry point by which configurations become objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from multimodal.config.instantiating import instantiate
from multimodal.config.problems import ConfigError, ConfigProblem
from multimodal.config.targets import addresses
from multimodal.config.targets.judging import foreign_targets, misplaced
from multimodal.config.targets.resolving import allowed_packages
from multimodal.config.tree import plain


def build(
    cfg: DictConfig,
    *path: str,
    groups: Sequence[str] = (),
    convert: str | None = None,
    **parts: Any,
) -> Any:
    """Checks a block of a configuration, and only then builds it.

    Args:
        cfg: a whole configuration, the user's own or one that `stored_config` has read.
        path: keys from the root to the block, or to a mapping of blocks.
        groups: of the root, that the block's class takes too where they are not null.
        convert: Hydra's ``_convert_``.
        parts: further objects for the block's class.

    Returns:
        the object, or the mapping of objects; None where the block is null.

    Raises:
        ConfigError: if anything in it may not stand where it does; then nothing was called.
    """
    if (node := _at(cfg, path)) is None:
        return None
    given = {name: cfg[name] for name in groups if cfg.get(name) is not None}
    for place in (path, *((name,) for name in given)):
        if problems := list(_problems(cfg, place)):
            raise ConfigError(problems)
    if convert is not None:
        parts["_convert_"] = convert
    return instantiate(node, **given, **parts)


def _problems(cfg: DictConfig, path: Sequence[str]) -> Iterator[ConfigProblem]:
    tree, where = plain(_at(cfg, path))[0], ".".join(path)
    packages = allowed_packages(_list(cfg, "allowed_packages"))
    yield from addresses.refuse_unnamed(tree, _list(cfg, addresses.KEY), where)
    foreign = list(foreign_targets(tree, packages, where))
    yield from foreign or misplaced(tree, packages, strict=False, path=path)


def _at(cfg: DictConfig, path: Sequence[str]) -> Any:
    node: Any = cfg
    for key in path:
        node = node[key]
    return node


def _list(cfg: DictConfig, key: str) -> Any:
    node = cfg.get(key)
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
