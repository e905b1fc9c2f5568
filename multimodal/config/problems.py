"""What a fault in a configuration looks like to its reader."""

from __future__ import annotations

from collections.abc import Sequence

from multimodal.core.errors import ConfigError, Fault
from multimodal.core.suggest import did_you_mean, nearest

__all__ = ["ConfigError", "Fault", "StoredConfigError", "did_you_mean", "nearest"]


class StoredConfigError(ConfigError):
    """A configuration that came with a file, and is not used."""

    def __init__(self, faults: Sequence[Fault], path: str) -> None:
        super().__init__(faults)
        self.args = (faults, path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {super().__str__()}"
