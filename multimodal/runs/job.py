"""One job around its training: what is noted before and after it, and what must not be noted."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from multimodal.runs import origin, sweep
from multimodal.runs.secrets import RedactingFilter, redact_files, redacted, secrets_in


def run_job(cfg: DictConfig, job: Callable[[DictConfig], None]) -> float | None:
    """Runs ``job`` unless its sweep has done so before; what the run leaves holds no secrets.

    Args:
        cfg: as Hydra composed it.
        job: trains, or whatever the program does.

    Returns:
        The value of ``sweep_metric``; None where there is none.
    """
    hydra: Any = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    words = [str(word) for word in hydra.overrides.task]
    secrets = protect(cfg, folder)
    words = [redacted(word, secrets) for word in words]
    of_a_sweep = hydra.mode == RunMode.MULTIRUN
    if of_a_sweep and (record := sweep.finished(folder, words)):
        print(f"job {hydra.job.num} was finished before, in {folder}", file=sys.stderr)
        value: float | None = record["value"]
        return value
    if origin.is_first_rank() and hydra.output_subdir is not None:  # null: leaves its output only
        description = origin.describe([redacted(w, secrets) for w in origin.command_line()])
        origin.write_run_json(folder, description)
    job(cfg)
    if not origin.is_first_rank():
        return None
    value = sweep.value_of(folder, cfg.get("sweep_metric"))
    if of_a_sweep:
        sweep.mark_finished(folder, words, value)
    return value


def protect(cfg: DictConfig, folder: Path) -> list[str]:
    """Takes secrets out of the run's folder, of logs to come and of this process's arguments.

    Returns:
        The secrets.
    """
    found = list(secrets_of(cfg))
    secrets = [secret for _, secret in found]
    if not secrets:
        return []
    literal = dict(secrets_in(OmegaConf.to_container(cfg, resolve=False)))
    for where in dict.fromkeys(where for where, _ in found if where in literal):
        print(
            f"WARNING: {where} looks like a key or a password. It is not written down, but others "
            f"may read it in the list of processes: put it into an environment variable and write "
            f"'{where}=${{oc.env:NAME}}'",
            file=sys.stderr,
        )
    redact_files((folder / ".hydra").glob("*.yaml"), secrets)
    for handler in logging.getLogger().handlers:
        handler.addFilter(RedactingFilter(secrets))
    # Loggers of third parties note these arguments.
    sys.argv[1:] = [redacted(word, secrets) for word in sys.argv[1:]]
    return secrets


def secrets_of(cfg: DictConfig) -> list[tuple[str, str]]:
    """(dotted key, secret) of a configuration, with what its interpolations lead to."""
    return list(dict.fromkeys(secrets_in(OmegaConf.to_container(cfg, resolve=True))))
