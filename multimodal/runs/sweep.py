"""Sweeps: what is finished is not run again, and at the end there is a table."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.table import Table

from multimodal.core.errors import UserError
from multimodal.core.extras import module_of
from multimodal.core.files import write_text
from multimodal.runs.secrets import redact_files, redact_records, redacted, secrets_in

FINISHED = "finished.json"  # in a job's folder: its overrides and its value
_SHOWN = 12  # columns of the table in the terminal


class SweepError(UserError, RuntimeError):
    """A folder that holds a job of another sweep, or a metric that no job has."""


def finished(folder: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    """What a job in ``folder`` said when it was finished; None if it was not.

    Raises:
        SweepError: if it was a job with other overrides.
    """
    path = folder / FINISHED
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    if sorted(record["overrides"]) != sorted(overrides):
        raise SweepError(
            f"{folder} holds a finished job of another sweep ({' '.join(record['overrides'])}); "
            "give hydra.sweep.dir another folder, or repeat that sweep's command"
        )
    return record


def mark_finished(folder: Path, overrides: Sequence[str], value: float | None) -> None:
    """Notes that the job in ``folder`` need not be run again."""
    content = json.dumps({"overrides": list(overrides), "value": value})
    write_text(folder / FINISHED, content + "\n")


def results_of(folder: Path) -> dict[str, float]:
    """Every number that a run left: `metrics.json`, and the last of each in `metrics.csv`."""
    found: dict[str, float] = {}
    table, report = folder / "metrics.csv", folder / "metrics.json"
    if table.exists():
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                found |= {name: float(text) for name, text in row.items() if text and name}
    if report.exists():
        found |= dict(_numbers(json.loads(report.read_text())))
    return found


def _numbers(tree: Any, where: str = "") -> list[tuple[str, float]]:
    if isinstance(tree, dict):
        return [
            item
            for key, child in tree.items()
            for item in _numbers(child, f"{where}.{key}" if where else str(key))
        ]
    is_number = isinstance(tree, int | float) and not isinstance(tree, bool)
    return [(where, float(tree))] if is_number else []


def value_of(folder: Path, metric: str | None) -> float | None:
    """The value that a sweep optimizes, from what the run left; None where it optimizes none.

    Raises:
        SweepError: if there is no such metric; names those that there are.
    """
    if metric is None:
        return None
    found = results_of(folder)
    if metric not in found:
        raise SweepError(
            f"sweep_metric={metric}: the run left no such number; there are {', '.join(found)}"
        )
    return found[metric]


class SweepRecord(Callback):
    """Hydra's callback around a sweep: goes on with a study, and writes `sweep.csv` at the end."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Lets an Optuna study that goes on run the trials that are missing, in new folders."""
        words = OmegaConf.to_container(config.hydra.overrides, resolve=False)
        if secrets := [secret for _, secret in secrets_in(words)]:
            redact_records(secrets)  # Hydra tells every job's words
        sweeper = config.hydra.sweeper
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        if sweeper.get("storage") is None or sweeper.get("study_name") is None:
            return
        trials, complete = _trials(str(sweeper.storage), str(sweeper.study_name))
        if trials:
            with open_dict(config):
                sweeper.n_trials = max(0, sweeper.n_trials - complete)
                # Trials are numbered anew by each start, the folders must not be.
                config.hydra.overrides.hydra.append(
                    f"hydra.sweep.subdir=from{trials}_${{hydra.job.num}}"
                )

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Writes the table of all jobs and shows it."""
        folder = Path(config.hydra.sweep.dir)
        redact_multirun(folder)
        rows = table_rows(folder)
        if rows:
            write_table(folder / "sweep.csv", rows)
            show_table(rows, config.get("sweep_metric"))
            print(f"sweep: {folder / 'sweep.csv'}")


def _trials(storage: str, study_name: str) -> tuple[int, int]:
    """How many trials a study has, and how many of them are complete; ends those cut off."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells each of its plugins
    optuna = module_of("sweep", "optuna", "a search by Optuna")

    # Optuna 2 writes the version of its tables without a commit, which SQLAlchemy 2 drops: the
    # study could never be opened.
    tables = optuna.storages.RDBStorage(storage, engine_kwargs={"isolation_level": "AUTOCOMMIT"})
    tables.engine.dispose()
    names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
    if study_name not in names:
        return 0, 0
    study = optuna.load_study(study_name=study_name, storage=storage)
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    complete = sum(t.state == optuna.trial.TrialState.COMPLETE for t in study.trials)
    return len(study.trials), complete


def redact_multirun(folder: Path) -> None:
    """Takes secrets out of `multirun.yaml`, which Hydra writes before any job."""
    path = folder / "multirun.yaml"
    if path.exists():
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        redact_files([path], [secret for _, secret in secrets_in(tree)])


def table_rows(folder: Path) -> list[dict[str, Any]]:
    """One row per job below ``folder``: its name, its overrides and its numbers."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*/.hydra/overrides.yaml"), key=lambda p: _natural(p.parts[-3])):
        job = path.parents[1]
        words = [str(word) for word in OmegaConf.to_container(OmegaConf.load(path)) or []]
        secrets = [secret for _, secret in secrets_in(words)]
        row: dict[str, Any] = {"job": job.name, "finished": (job / FINISHED).exists()}
        for word in words:
            key, _, value = word.lstrip("+~").partition("=")
            row[key] = redacted(value, secrets)
        rows.append({**row, **results_of(job)})
    return rows


def _natural(name: str) -> tuple[int, str]:
    return (int(name) if name.isdigit() else 1 << 31, name)


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes ``rows`` as CSV, atomically; what a job lacks is left empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _columns(rows), restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def show_table(rows: Sequence[dict[str, Any]], metric: str | None) -> None:
    """Prints what differs between the jobs, the metric that is optimized first."""
    columns = [
        name
        for name in _columns(rows)
        if name in ("job", metric) or len({str(row.get(name)) for row in rows}) > 1
    ]
    columns.sort(key=lambda name: name != "job")
    if metric in columns:
        columns.remove(metric)
        columns.insert(1, metric)
    table = Table(title="sweep")
    for name in columns[:_SHOWN]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_short(row.get(name, "")) for name in columns[:_SHOWN]))
    Console().print(table)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
