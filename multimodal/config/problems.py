"""Problems in a configuration, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence

from multimodal.core.errors import ConfigError, ConfigProblem
from multimodal.core.suggest import did_you_mean, nearest

__all__ = ["ConfigError", "ConfigProblem", "StoredConfigError", "did_you_mean", "nearest"]


class StoredConfigError(ConfigError):
    """A configuration that came with a file, and is not used."""

    def __init__(self, problems: Sequence[ConfigProblem], path: str) -> None:
        super().__init__(problems)
        self.args = (problems, path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {super().__str__()}"
