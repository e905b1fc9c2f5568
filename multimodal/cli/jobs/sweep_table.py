"""The table of a sweep: a row per job, in `sweep.csv` and in the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from multimodal.cli.jobs.records import FINISHED, UNFINISHED, read, results_of
from multimodal.core.files import write_text
from multimodal.core.process.secrets import redacted, secrets_in

DONE, NOT_RUN, FAILED = "done", "not run", "failed: "
KILLED = "its process was killed"
_SHOWN = 12  # columns of the table in the terminal


def status_of(folder: Path) -> str:
    """``done``, ``not run``, or ``failed:`` and the reason, by what the job in ``folder`` left."""
    if (folder / FINISHED).exists():
        return DONE
    record = read(folder / UNFINISHED)
    return NOT_RUN if record is None else FAILED + (record["reason"] or KILLED)


def table_rows(
    folder: Path, jobs: Mapping[str, tuple[Sequence[str], str]] | None = None
) -> list[dict[str, Any]]:
    """One row per job: its name, its status, its overrides and its numbers.

    Args:
        folder: the sweep's; every job that has left something below it has a row.
        jobs: name of a job's folder -> overrides and status, of those the sweep knows of.
    """
    there = {path.parents[1].name: path for path in folder.glob("*/.hydra/overrides.yaml")}
    rows: list[dict[str, Any]] = []
    for name in sorted({*there, *(jobs or {})}, key=_natural):
        job = folder / name
        if jobs and name in jobs:
            words, status = jobs[name]
        else:
            words = [
                str(word) for word in OmegaConf.to_container(OmegaConf.load(there[name])) or ()
            ]
            status = status_of(job)
        secrets = [secret for _, secret in secrets_in(list(words))]
        row: dict[str, Any] = {
            "job": name, "status": redacted(status, secrets), "finished": status == DONE,
        }  # fmt: skip
        for word in words:
            key, _, value = word.lstrip("+~").partition("=")
            row[key] = redacted(value, secrets)
        rows.append({**row, **(results_of(job) if status != NOT_RUN else {})})
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
    """Prints what differs between the jobs, the metric that is optimized first.

    A figure with a 95 % interval shows it; the bounds have columns of their own in the CSV only.
    """
    columns = [
        name
        for name in _columns(rows)
        if name in ("job", "status", metric)
        or (
            name != "finished"
            and ".interval." not in name
            and len({str(row.get(name)) for row in rows}) > 1
        )
    ]
    if metric in columns:
        columns.remove(metric)
        columns.insert(2, metric)
    table = Table(title="sweep")
    for name in columns[:_SHOWN]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_short(row, name) for name in columns[:_SHOWN]))
    Console().print(table)


def _short(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name, "")
    task, _, metric = name.rpartition(".")
    low, high = (row.get(f"{task}.interval.{metric}.{end}") for end in ("low", "high"))
    bounds = "" if low is None or high is None else f" ({low:.3g}–{high:.3g})"
    return (f"{value:.4g}" if isinstance(value, float) else str(value)) + bounds
