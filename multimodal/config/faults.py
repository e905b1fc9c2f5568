"""What a fault in a configuration looks like to its reader."""

from multimodal.core.errors import ConfigError, Fault
from multimodal.core.suggest import did_you_mean, nearest

__all__ = ["ConfigError", "Fault", "did_you_mean", "nearest"]
