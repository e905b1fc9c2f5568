"""Finding, composing and checking configurations; nothing here imports torch.

`compose_or_explain` answers for the command line, `check` for what was composed.
"""

from multimodal.config.checking import check, refuse_foreign_targets
from multimodal.config.command_line import arrange, compose_or_explain, config_dir
from multimodal.config.faults import ConfigError, Fault
from multimodal.config.targets import defaults_bound

__all__ = [
    "ConfigError",
    "Fault",
    "arrange",
    "check",
    "compose_or_explain",
    "config_dir",
    "defaults_bound",
    "refuse_foreign_targets",
]
