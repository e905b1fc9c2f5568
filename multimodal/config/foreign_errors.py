"""Errors of Hydra and OmegaConf that are about what the user wrote, as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import CompactHydraException
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from multimodal.config.problems import ConfigError, ConfigProblem


@contextmanager
def foreign_errors_explained() -> Iterator[None]:
    """Within, what those libraries raise of a configuration becomes a `ConfigError`."""
    try:
        yield
    except MissingMandatoryValue as error:
        key = str(error.full_key or "configuration")
        raise ConfigError([ConfigProblem(key, f"has no value: set it with {key}=...")]) from error
    except InterpolationResolutionError as error:
        where = str(error.full_key or "configuration")
        raise ConfigError(
            [ConfigProblem(where, str(error.msg or error).splitlines()[0])]
        ) from error
    except CompactHydraException as error:
        first, *more = str(error).splitlines() or [type(error).__name__]
        key = next((line.partition("full_key: ")[2] for line in more if "full_key: " in line), "")
        cause = f": {error.__cause__}" if error.__cause__ is not None else ""
        raise ConfigError([ConfigProblem(key or "configuration", f"{first}{cause}")]) from error
