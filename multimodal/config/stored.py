"""A configuration that came with a file: read, and judged before anything of it is built.

Whoever made the file chose every word of it. So it may name only classes, each of the kind that
stands at its place (`PLACES`); it holds no interpolation, since stored configurations are
resolved; and its own allowed packages and addresses are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError

from multimodal.config.composing.libyaml import parse_with_libyaml
from multimodal.config.problems import ConfigProblem, StoredConfigError
from multimodal.config.targets import addresses
from multimodal.config.targets.judging import foreign_targets, misplaced
from multimodal.config.targets.renamed import with_new_names
from multimodal.config.targets.resolving import allowed_packages
from multimodal.config.tree import block, join, leaves, nodes

parse_with_libyaml()

_TRAINER = "pytorch_lightning.Trainer"
_CORPUS = "multimodal.data.CorpusTokenizer"
_BPE = "multimodal.data.BPETokenizer"
# Blocks whose keys are names, of which folders and files are called.
NAMED = (
    "model.towers", "model.joint", "tasks", "pairs", "data.sources", "data.val_sources",
    "data.transforms", "evaluation.sets", "callbacks", "logger",
)  # fmt: skip
_NAME = re.compile(r"[^\s/\\.\x00-\x1f][^/\\\x00-\x1f]*")
_INTERPOLATION = (
    "holds an interpolation, '${': stored configurations are resolved, and nothing is read for it"
)
_MOST_CHARACTERS = 32 << 20


def stored_config(
    text: Any, path: str | Path, packages: Sequence[str] = (), named: Sequence[str] = ()
) -> DictConfig:
    """Reads and judges the configuration in a file; nothing is resolved, called or opened.

    Args:
        text: YAML.
        path: of the file, for messages.
        packages: of the caller's own, that it may name classes of.
        named: addresses that the caller names.

    Raises:
        StoredConfigError: listing all that may not stand in it.
    """
    tree = stored_tree(text, path)
    trainer = block(tree, "trainer")
    if trainer.get("_target_") == _TRAINER:  # a record of its training, never built
        del trainer["_target_"]
    tree["allowed_packages"], tree[addresses.KEY] = list(packages), list(named)
    allowed = allowed_packages(list(packages))
    problems = list(foreign_targets(tree, allowed))
    if problems := problems or list(misplaced(tree, allowed, strict=True)):
        raise StoredConfigError(problems, str(path))
    cfg = OmegaConf.create(tree)
    assert isinstance(cfg, DictConfig)
    return cfg


def for_use(cfg: DictConfig) -> DictConfig:
    """A stored configuration to build from: nothing in it trains, writes, or asks the hub.

    A tokenizer that was trained on a corpus is read from its file. A name on the hub is looked for
    in its local cache, unless the caller names ``hf://NAME``.
    """
    tree: Any = OmegaConf.to_container(cfg)
    for _, node in nodes(tree):
        if node.get("_target_") == _CORPUS:
            path = node.get("path")
            node.clear()
            node |= {"_target_": _BPE, "path": path}
        elif node.get("offline") is False:
            name = f"{addresses.HUB}{node.get('name')}"
            node["offline"] = not addresses.is_named(name, tree[addresses.KEY])
    used = OmegaConf.create(tree)
    assert isinstance(used, DictConfig)
    return used


def stored_tree(text: Any, path: str | Path) -> dict[str, Any]:
    """The plain values of a stored configuration, to look at: nothing of them may be built.

    Raises:
        StoredConfigError: if it cannot be read, or holds what must not be resolved.
    """
    tree = with_new_names(_parsed(text, path))
    if problems := [*_unresolved(tree), *_unfit_names(tree)]:
        raise StoredConfigError(problems, str(path))
    return tree


def _parsed(text: Any, path: str | Path) -> dict[str, Any]:
    reason = None if isinstance(text, str) else f"it is a {type(text).__name__}, not a text"
    if reason is None and len(text) > _MOST_CHARACTERS:
        reason = f"it has {len(text)} characters, expected {_MOST_CHARACTERS} at most"
    try:
        if reason is None and _refers_to_itself(text):
            reason = "it has a YAML alias, which nothing that is stored has"
        tree: Any = OmegaConf.to_container(OmegaConf.create(text)) if reason is None else None
    except GrammarParseError as error:
        reason = f"it {_INTERPOLATION} ({error})"
    except Exception as error:  # of a text that was made to upset the parser
        reason = (str(error) or type(error).__name__).splitlines()[0]
    if reason is None and not isinstance(tree, dict):
        reason = "it is not a block of keys"
    if reason is not None:
        problem = f"the configuration cannot be read: {reason}"
        raise StoredConfigError([ConfigProblem("configuration", problem)], str(path))
    return {str(key): value for key, value in tree.items()}


def _refers_to_itself(text: str) -> bool:
    """Whether it has aliases, by which a short text can stand for more than any memory holds."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader))


def _unresolved(tree: Any) -> Iterator[ConfigProblem]:
    """Interpolations: they would read the environment, or files, of the user who opens the file."""
    for where, node in nodes(tree):
        for key in node:
            if "${" in str(key):
                yield ConfigProblem(join(where, str(key)), f"its key {_INTERPOLATION}")
    for where, value in leaves(tree):
        if not (value is None or type(value) in (bool, int, float, str)):
            yield ConfigProblem(where, f"given a {type(value).__name__}, expected a plain value")
        elif isinstance(value, str) and "${" in value:
            yield ConfigProblem(where, f"given {value[:200]!r}: it {_INTERPOLATION}")


def _unfit_names(tree: Any) -> Iterator[ConfigProblem]:
    for path in NAMED:
        for key in block(tree, path):
            if not _NAME.fullmatch(str(key)):
                yield ConfigProblem(
                    join(path, str(key)), "a name must not be a path, nor begin with a dot"
                )
