"""Addresses in a configuration that came with a file are opened only if the caller names them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from multimodal.config.problems import ConfigError, ConfigProblem
from multimodal.config.tree import at, leaves
from multimodal.core import pretrained_files

KEY = "allowed_addresses"  # of the root; null in a configuration of the user's own
# What is built of a checkpoint's configuration to embed and to evaluate.
OPENED = ("model", "fusion", "tasks", "data.transforms", "evaluation")
HUB = "hf://"
_OURS = ("samples://", pretrained_files.PREFIX)  # local files


def is_address(value: Any) -> bool:
    """Whether a value is something to fetch, or a command to read from, and not a local path."""
    if not isinstance(value, str) or value.startswith(_OURS):
        return False
    scheme, separator, _ = value.partition("://")
    words = len(scheme.split()) > 1 and "::" not in scheme  # a sentence with an address in it
    return (bool(separator) and not words) or value.lstrip().startswith("pipe:")


def named_by(cfg: DictConfig) -> list[str]:
    """All addresses in a configuration that the caller wrote: being there, they are named."""
    tree = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    return [value for _, value in leaves(tree) if is_address(value)]


def is_named(address: str, named: Iterable[str]) -> bool:
    """Whether an address is one of ``named`` or lies below one."""
    below = "::" not in address and ".." not in address.split("/")
    return any(
        address == each or (below and address.startswith(each.rstrip("/") + "/")) for each in named
    )


def refuse_unnamed(
    tree: Any, named: Sequence[str] | None, where: str = ""
) -> Iterator[ConfigProblem]:
    """A problem for every address in ``tree`` that is not named; none if all may be opened."""
    if named is None:
        return
    for place, value in leaves(tree, where):
        if is_address(value) and not is_named(value, named):
            yield ConfigProblem(place, unnamed(value))


def require_named(cfg: DictConfig, where: str, address: str) -> None:
    """Refuses to open an address that came with a file, and that the caller has not named.

    Raises:
        ConfigError: naming it and how to allow it.
    """
    if problems := list(refuse_unnamed(address, cfg.get(KEY), where)):
        raise ConfigError(problems)


def unnamed(address: str) -> str:
    """What to say of an address that came with a file."""
    return (
        f"{address} came with the file and is not opened unless you name it: "
        f"'{KEY}=[{address}]', or a folder of it"
    )


def unnamed_addresses(tree: dict[str, Any]) -> Iterator[ConfigProblem]:
    """Nothing that an evaluation builds has an address that only the file names."""
    named = tree.get(KEY)
    for path in OPENED:
        yield from refuse_unnamed(at(tree, path), named, path)
