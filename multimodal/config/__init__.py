"""What may stand in a configuration, and who checks it; nothing here imports torch.

`compose_or_explain` answers for the command line, `check` for what was composed, and `build`
makes objects of it.
"""

from typing import TYPE_CHECKING

from multimodal.core.imports.lazy import lazy

if TYPE_CHECKING:
    from multimodal.config.building import build
    from multimodal.config.checking import check
    from multimodal.config.composing.command_line import (
        compose_or_explain,
        config_dir,
    )
    from multimodal.config.composing.words import normalize_args
    from multimodal.config.portable import defaults_bound, portable_yaml
    from multimodal.config.problems import StoredConfigError
    from multimodal.config.removed import drop_removed
    from multimodal.config.stored import for_use, stored_config, stored_tree
    from multimodal.config.targets.addresses import named_by, require_named
    from multimodal.core.errors import ConfigError, ConfigProblem
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "ConfigError",
    "ConfigProblem",
    "StoredConfigError",
    "build",
    "check",
    "compose_or_explain",
    "config_dir",
    "defaults_bound",
    "drop_removed",
    "for_use",
    "named_by",
    "normalize_args",
    "portable_yaml",
    "require_named",
    "stored_config",
    "stored_tree",
]
