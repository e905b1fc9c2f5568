"""Finding, composing and checking configurations; nothing here imports torch.

`compose_or_explain` answers for the command line, `check` for what was composed.
"""

from multimodal.config.addresses import named_by, require_named
from multimodal.config.building import build
from multimodal.config.checking import check
from multimodal.config.command_line import arrange, compose_or_explain, config_dir
from multimodal.config.faults import ConfigError, Fault, StoredConfigError
from multimodal.config.stored import for_use, stored_config, stored_tree
from multimodal.config.targets import defaults_bound

__all__ = [
    "ConfigError",
    "Fault",
    "StoredConfigError",
    "arrange",
    "build",
    "check",
    "compose_or_explain",
    "config_dir",
    "defaults_bound",
    "for_use",
    "named_by",
    "require_named",
    "stored_config",
    "stored_tree",
]
