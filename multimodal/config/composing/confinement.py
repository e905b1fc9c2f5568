"""Names stay where names belong: options in the folders of configurations, runs in `outputs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multimodal.core.errors import ConfigProblem

# Keys whose values become parts of paths, or options of a group.
NAMES = (
    "name", "hydra.job.name", "hydra.job.config_name", "hydra.output_subdir", "hydra.sweep.subdir",
    "anchor.experiment",
)  # fmt: skip


def leaves(text: str) -> bool:
    """Whether a path leads out of the folder that it is taken from."""
    kinds = (PurePosixPath(text), PureWindowsPath(text))
    return any(bool(path.anchor) or ".." in path.parts for path in kinds)


def wandering_option(word: str, group: str, options: list[str]) -> Iterator[ConfigProblem]:
    """The faults of a word that chooses ``options`` of ``group`` outside of its folder."""
    for option in [group, *options]:
        if leaves(option):
            yield ConfigProblem(
                word,
                f"'{option}' leads out of the folders of configurations; an option is a name in "
                "its group, and more folders are added by --config-dir or hydra.searchpath",
            )


def wandering_names(cfg: DictConfig) -> Iterator[ConfigProblem]:
    """The faults of names that lead out of their folder, in a composed configuration."""
    for key in NAMES:
        value = _value(cfg, key)
        if isinstance(value, str) and leaves(value):
            yield ConfigProblem(
                key,
                f"'{value}' leads out of the folder that it is a name in; give a plain name, and "
                "the place of a run by hydra.run.dir=FOLDER (of a sweep: hydra.sweep.dir=FOLDER)",
            )
    for group, option in (_value(cfg, "hydra.runtime.choices") or {}).items():
        yield from wandering_option(f"{group}={option}", str(group), [str(option)])


def _value(cfg: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None  # of what Hydra knows only later
