"""Wraps one job: records it before and after training, without secrets."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from multimodal.cli.jobs import records
from multimodal.cli.jobs.folder import refuse_to_start_over
from multimodal.cli.jobs.records import SweepError
from multimodal.core.process import lock, provenance
from multimodal.core.process.exits import report
from multimodal.core.process.secrets import (
    RedactingFilter,
    redact_files,
    redacted,
    secrets_in,
    secrets_of,
)


def run_job(cfg: DictConfig, job: Callable[[DictConfig], None]) -> float | None:
    """Runs ``job`` unless its sweep has finished it before; its outputs hold no secrets.

    The run holds its folder meanwhile. An interrupted job of a sweep resumes from its newest
    checkpoint.

    Args:
        cfg: as Hydra composed it.
        job: the program's work, training for example.

    Returns:
        The value of ``sweep_metric``; None where there is none.

    Raises:
        FolderInUseError: if another run is under way in the folder.
        RunFolderError: if the folder holds another run.
        SweepError: if a sweep's job failed; its error is reported already.
    """
    hydra: Any = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    words = [str(word) for word in hydra.overrides.task]
    secrets = protect(cfg, folder)
    words = [redacted(word, secrets) for word in words]
    # A folder of its own; null: leaves its output only. The other ranks share the first one's.
    owns = provenance.is_first_rank() and hydra.output_subdir is not None
    with lock.held(folder) if owns else nullcontext():
        if hydra.mode == RunMode.MULTIRUN:
            return _job_of_a_sweep(cfg, job, folder, words, secrets)
        if owns:
            refuse_to_start_over(cfg.get("resume", "auto"), folder)
        return _run(cfg, job, folder, secrets)


def _run(
    cfg: DictConfig, job: Callable[[DictConfig], None], folder: Path, secrets: list[str]
) -> float | None:
    hydra: Any = HydraConfig.get()
    if provenance.is_first_rank() and hydra.output_subdir is not None:
        description = provenance.describe([redacted(w, secrets) for w in provenance.command_line()])
        provenance.write_run_json(folder, description)
    job(cfg)
    if not provenance.is_first_rank():
        return None
    if secrets and hydra.output_subdir is not None:  # a report's title, a metric's name
        redact_files(_text_files(folder), secrets)
    return records.value_of(folder, cfg.get("sweep_metric"))


def _text_files(folder: Path) -> list[Path]:
    kinds = (".csv", ".html", ".json", ".jsonl", ".log")
    return [path for path in folder.iterdir() if path.suffix in kinds]


def _job_of_a_sweep(
    cfg: DictConfig,
    job: Callable[[DictConfig], None],
    folder: Path,
    words: list[str],
    secrets: list[str],
) -> float | None:
    hydra: Any = HydraConfig.get()
    if record := records.finished(folder, words):
        print(f"job {hydra.job.num} was finished before, in {folder}", file=sys.stderr)
        done: float | None = record["value"]
        return done
    first = provenance.is_first_rank()
    if not records.unfinished(folder, words):
        refuse_to_start_over(cfg.get("resume", "auto"), folder)
    elif cfg.get("resume", "auto") is None:
        cfg.resume = "auto"
    if first:
        records.mark_begun(folder, words)
    try:
        value = _run(cfg, job, folder, secrets)
    except BaseException as error:
        reason = redacted(records.one_line(error), secrets)
        if first:
            records.mark_begun(folder, words, reason)
        if _is_the_end(error):
            raise
        if isinstance(error, SystemExit):
            print(f"job {hydra.job.num} ended by itself: {reason}", file=sys.stderr)
        else:
            report(error)
        raise SweepError(reason) from None  # it can travel from any worker
    if first:
        records.mark_finished(folder, words, value)
    return value


def _is_the_end(error: BaseException) -> bool:
    """Whether the sweep was asked to end, and not only its job."""
    if isinstance(error, SystemExit):  # 128 and the number of a signal
        return isinstance(error.code, int) and error.code > 128
    return not isinstance(error, Exception)


def protect(cfg: DictConfig, folder: Path) -> list[str]:
    """Takes secrets out of the run's folder, of logs to come and of this process's arguments.

    Returns:
        The secrets.
    """
    located = list(secrets_of(cfg))
    secrets = [secret for _, secret in located]
    if not secrets:
        return []
    raw = secrets_in(OmegaConf.to_container(cfg, resolve=False))
    literal = [where for where, secret in raw if secret not in os.environ.values()]
    for where in dict.fromkeys(where for where, _ in located if where in literal):
        print(
            f"WARNING: {where} looks like a key or a password. It is not recorded, but others may "
            "read it in the process list: put it into an environment variable and write "
            f"'{where}=${{oc.env:NAME}}'",
            file=sys.stderr,
        )
    redact_files((folder / ".hydra").glob("*.yaml"), secrets)
    for handler in logging.getLogger().handlers:
        handler.addFilter(RedactingFilter(secrets))
    # Loggers of third parties note these arguments.
    sys.argv[1:] = [redacted(word, secrets) for word in sys.argv[1:]]
    return secrets
