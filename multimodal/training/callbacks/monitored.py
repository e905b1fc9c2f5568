"""The metric of the validation that a callback goes by."""

from __future__ import annotations

import pytorch_lightning as pl

from multimodal.core.errors import ConfigError, ConfigProblem
from multimodal.core.suggest import did_you_mean


def not_logged(key: str, name: str | None, trainer: pl.Trainer) -> ConfigError:
    """The error of a metric that the validation did not log.

    Args:
        key: of the configuration, that names the metric.
        name: the metric.
        trainer: which has the metrics that there are.
    """
    known = [each for each in map(str, trainer.callback_metrics) if each.startswith("val/")]
    given = f"given {name!r}, which the validation does not log; {did_you_mean(str(name), known)}"
    if len(known) > 1:
        given += f" There are {', '.join(sorted(known))}"
    return ConfigError([ConfigProblem(key, given)])
