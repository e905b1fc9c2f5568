"""One composition per choice of groups for a whole process of tests.

Hydra takes half a second to a whole one to lay some 60 files over each other, and tests compose the
same few experiments hundreds of times with other values. What depends on the choice of groups
alone is kept; values are applied anew each time, by Hydra itself. Files of a test's own are read
each time, since it may change them. Programs that a test starts know nothing of this.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig
from omegaconf.base import Box

from multimodal.config import config_dir

STABLE = (config_dir(), Path(__file__).parents[1] / "own_configs")


def keep_compositions() -> None:
    """Until the process ends, Hydra composes the files of each choice of groups once."""
    list_defaults = config_loader_impl.create_defaults_list
    merge = ConfigLoaderImpl._compose_config_from_defaults_list
    lists: dict[tuple[Any, ...], DefaultsList] = {}
    merged: dict[int, DictConfig | None] = {}  # by the list's identity; all are kept in `lists`

    def create_defaults_list(
        repo: IConfigRepository, config_name: str | None, overrides_list: list[Override],
        prepend_hydra: bool, skip_missing: bool,
    ) -> DefaultsList:  # fmt: skip
        values = [word for word in overrides_list if _sets_a_value(word, repo)]
        groups = [word.input_line for word in overrides_list if word not in values]
        places = [f"{source.scheme()}{source.path}" for source in repo.get_sources()]
        key = (config_name, prepend_hydra, skip_missing, *groups, None, *places)
        if key in lists:
            known = lists[key]
            return dataclasses.replace(known, config_overrides=values)
        new = list_defaults(repo, config_name, overrides_list, prepend_hydra, skip_missing)
        if _stable(source.path for source in repo.get_sources() if source.scheme() == "file"):
            lists[key] = new
            merged[id(new.defaults)] = None
        return new

    def compose_config(
        self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> DictConfig:
        known = merged.get(id(defaults))
        if known is None:
            with _parents_set_once():
                known = merge(self, defaults, repo)
            known._re_parent()
            if id(defaults) not in merged:
                return known
            merged[id(defaults)] = known
        return copy.deepcopy(known)

    keep_files()
    config_loader_impl.create_defaults_list = create_defaults_list
    ConfigLoaderImpl._compose_config_from_defaults_list = compose_config  # type: ignore[method-assign]


@contextlib.contextmanager
def _parents_set_once() -> Iterator[None]:
    """After each file OmegaConf tells every node of the whole its parent again: a sixth of it."""
    again = Box._re_parent
    Box._re_parent = lambda self: None
    try:
        yield
    finally:
        Box._re_parent = again


def keep_files() -> None:
    """Until the process ends, a file is read once, and Hydra makes no map that it does not need."""
    read, choices = CachingConfigRepository.load_config, defaults_list._create_interpolation_map
    embed = ConfigLoaderImpl._embed_result_config
    files: dict[tuple[str, ...], Any] = {}

    def start(self: CachingConfigRepository, delegate: IConfigRepository) -> None:
        self.delegate = copy.copy(delegate)  # of which the list of sources alone is replaced
        self.cache = {}

    def load_config(self: CachingConfigRepository, config_path: str) -> Any:
        sources = self.get_sources()
        if not _stable(source.path for source in sources if source.scheme() == "file"):
            return read(self, config_path)
        key = (config_path, *(f"{source.scheme()}{source.path}" for source in sources))
        if key not in files:
            files[key] = read(self, config_path)
        return files[key]

    def interpolation_map(
        overrides: Overrides, defaults: list[InputDefault], self_added: bool
    ) -> DictConfig | None:
        names = (getattr(each, "value", None) or getattr(each, "path", "") for each in defaults)
        if any("${" in str(name) for name in names):
            return choices(overrides, defaults, self_added)
        return None

    def embedded(ret: ConfigResult, package_override: str | None) -> ConfigResult:
        made = embed(ret, package_override)
        if made is not ret:
            return made  # a copy
        made = copy.copy(ret)
        made.config = copy.deepcopy(ret.config)  # others are merged into what is given here
        return made

    ConfigLoaderImpl._embed_result_config = staticmethod(embedded)  # type: ignore[method-assign]
    CachingConfigRepository.__init__ = start  # type: ignore[method-assign]
    CachingConfigRepository.load_config = load_config  # type: ignore[method-assign]
    defaults_list._create_interpolation_map = interpolation_map  # type: ignore[assignment]


def _sets_a_value(word: Override, repo: IConfigRepository) -> bool:
    """As Hydra sees it: no such group, or a dictionary."""
    if word.is_sweep_override():
        return False  # neither: it is a part of the key
    return isinstance(word.value(), dict) or not repo.group_exists(word.key_or_group)


def _stable(folders: Iterable[str]) -> bool:
    return all(any(Path(each).is_relative_to(known) for known in STABLE) for each in folders)
