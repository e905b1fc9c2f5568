"""Hydra's `instantiate`, with errors that name the key, like the problems that `check` reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multimodal.config.blame import fault_of
from multimodal.config.problems import ConfigError, ConfigProblem
from multimodal.config.targets.renamed import with_new_names
from multimodal.config.tree import join


def instantiate(node: Any, where: str | None = None, **more: Any) -> Any:
    """The objects that ``node`` describes; values that they reject are configuration errors.

    Args:
        node: a block of a configuration, or the like of it in plain dicts and lists.
        where: its dotted path; None: as the configuration that it belongs to says.
        more: passed to Hydra.

    Returns:
        As Hydra does. What is partial raises the same errors when it is called.

    Raises:
        ConfigError: naming the key, whatever the constructor raised.
    """
    with constructor_errors(node, where, more):
        made = hydra.utils.instantiate(with_new_names(node), **more)
    if isinstance(node, Mapping | DictConfig) and node.get("_partial_"):
        return _Partial(made, node, where)
    return made


class _Partial:
    """A partial object, whose errors name the key as well.

    Attributes:
        func: what it calls, as of `functools.partial`.
        keywords: with which arguments.
    """

    def __init__(self, made: partial[Any], node: Any, where: str | None) -> None:
        self._made, self._node, self._where = made, node, where
        self.func, self.keywords = made.func, made.keywords

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with constructor_errors(self._node, self._where):
            return self._made(*args, **kwargs)


@contextmanager
def constructor_errors(
    node: Any, where: str | None = None, more: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Within, objects are made of ``node``: any error becomes a `ConfigError` that names the key.

    Args:
        node: a block of a configuration, or the like of it in plain dicts and lists.
        where: its dotted path; None: as the configuration that it belongs to says.
        more: blocks that are passed beside it, by parameter.
    """
    try:
        yield
    except ConfigError:
        raise
    except InstantiationException as error:
        raise ConfigError([_of_hydra(error, node, where, more or {})]) from error
    except OmegaConfBaseException as error:
        key = str(error.full_key or _key_of(node, where))
        raise ConfigError([ConfigProblem(key, str(error.msg or error).splitlines()[0])]) from error
    except Exception as error:
        raise ConfigError([fault_of(error, _key_of(node, where), _plain(node))]) from error


def _of_hydra(
    error: InstantiationException, node: Any, where: str | None, more: Mapping[str, Any]
) -> ConfigProblem:
    """Of the innermost constructor: `full_key` is relative to ``node`` where that is plain."""
    innermost: BaseException = error
    while isinstance(innermost.__cause__, InstantiationException):
        innermost = innermost.__cause__
    cause = innermost.__cause__ or innermost
    full_key = str(innermost).partition("\nfull_key: ")[2].partition("\n")[0]
    inner = full_key.removeprefix(_key_of(node, None)).removeprefix(".")
    start = _key_of(node, where)
    beside = {name: block for name, block in more.items() if isinstance(block, DictConfig)}
    block = {**_plain(node), **{name: _plain(part) for name, part in beside.items()}}
    key = f"{start}{inner}" if inner.startswith("[") else join(start, inner) if inner else start
    problem = fault_of(cause, key, _plain(_select(block, inner)) if inner else block)
    for name, part in beside.items():  # it is elsewhere
        if f"{problem.where}.".startswith(f"{join(start, name)}."):
            place = problem.where.removeprefix(join(start, name))
            return ConfigProblem(f"{_key_of(part, None) or name}{place}", problem.message)
    return problem


def _key_of(node: Any, where: str | None) -> str:
    if where is None and isinstance(node, DictConfig | ListConfig):
        return str(node._get_full_key(None))
    return where or ""


def _select(node: Any, key: str) -> Any:
    """The block at ``key`` of ``node``; None where there is none."""
    try:
        config = node if isinstance(node, DictConfig | ListConfig) else OmegaConf.create(node)
        return OmegaConf.select(config, key) if key else node
    except (OmegaConfBaseException, ValueError):
        return None


def _plain(node: Any) -> dict[str, Any]:
    """The block as plain values, as far as they can be resolved."""
    if isinstance(node, DictConfig | ListConfig):
        try:
            node = OmegaConf.to_container(node, resolve=True)
        except OmegaConfBaseException:
            node = OmegaConf.to_container(node, resolve=False)
    if isinstance(node, list):
        return {f"[{index}]": value for index, value in enumerate(node)}
    return dict(node) if isinstance(node, Mapping) else {}
