"""One composition per start: Hydra composes twice to start one job, after we have looked at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.object_type import ObjectType
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig

_MODE = "hydra.mode=RUN"  # which Hydra adds where no mode is given


@contextmanager
def composed_once() -> Iterator[None]:
    """Within, the configuration that was composed first is handed on to the job.

    Hydra's own look at it, for the mode, sees the same. Other words, other folders, and the jobs of
    a sweep are composed again. `--help` asks for the options of each group, and Hydra would copy
    its whole store of configurations for every one.
    """
    compose, options = ConfigLoaderImpl.load_configuration, ConfigLoaderImpl.get_group_options
    kept: dict[tuple[str, ...], DictConfig | None] = {}

    def load_configuration(
        self: ConfigLoaderImpl,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        folders = [f"{place.provider} {place.path}" for place in self.config_search_path.get_path()]
        words = [word for word in overrides if word != _MODE]
        key = (str(config_name), *words, *folders)
        first = kept.get(key)
        if first is not None and not validate_sweep_overrides:  # a look at the mode
            return first
        if first is not None and run_mode == RunMode.RUN:
            kept[key] = None  # the job may change it
            if _MODE in overrides:
                first.hydra.mode = RunMode.RUN
                first.hydra.overrides.hydra.append(_MODE)
            return first
        cfg = compose(self, config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        if run_mode == RunMode.RUN and cfg.hydra.job.name != JobRuntime().get("name"):
            kept.setdefault(key, cfg)
        return cfg

    repositories: dict[int, Any] = {}

    def get_group_options(
        self: ConfigLoaderImpl,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        *words: Any,
        **named: Any,
    ) -> list[str]:
        if words or named:
            return list(options(self, group_name, results_filter, *words, **named))
        if id(self) not in repositories:
            repositories[id(self)] = CachingConfigRepository(self.repository)
        return list(repositories[id(self)].get_group_options(group_name, results_filter))

    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]
    ConfigLoaderImpl.get_group_options = get_group_options  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = compose  # type: ignore[method-assign]
        ConfigLoaderImpl.get_group_options = options  # type: ignore[method-assign]
