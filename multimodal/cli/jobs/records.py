"""What a job of a sweep leaves in its folder: that it began, how it ended, and its numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multimodal.core.errors import UserError
from multimodal.core.files import write_text

FINISHED = "finished.json"  # in a job's folder: its overrides and its value
UNFINISHED = "unfinished.json"  # its overrides and, once it has failed, the reason
_LONGEST = 400  # characters of a reason


class SweepError(UserError, RuntimeError):
    """A folder that holds a job of another sweep, a metric that no job has, jobs that failed."""


def finished(folder: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    """What a job in ``folder`` noted when it was finished; None if it was not.

    Raises:
        SweepError: if it was a job with other overrides.
    """
    return _of_this_job(folder, FINISHED, overrides)


def unfinished(folder: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    """What a job noted that began in ``folder`` and did not finish; None if none did.

    Raises:
        SweepError: if it was a job with other overrides.
    """
    return _of_this_job(folder, UNFINISHED, overrides)


def _of_this_job(folder: Path, name: str, overrides: Sequence[str]) -> dict[str, Any] | None:
    record = read(folder / name)
    if record is not None and sorted(record["overrides"]) != sorted(overrides):
        raise SweepError.mistake(
            f"{folder} holds a job of another sweep ({' '.join(record['overrides'])}); "
            "give hydra.sweep.dir another folder, or repeat that sweep's command"
        )
    return record


def read(path: Path) -> dict[str, Any] | None:
    """The record at ``path``; None if there is none."""
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def mark_begun(folder: Path, overrides: Sequence[str], reason: str | None = None) -> None:
    """Notes that the job in ``folder`` is not finished, and why if it has failed."""
    _write(folder / UNFINISHED, {"overrides": list(overrides), "reason": reason})


def mark_finished(folder: Path, overrides: Sequence[str], value: float | None) -> None:
    """Notes that the job in ``folder`` need not be run again."""
    _write(folder / FINISHED, {"overrides": list(overrides), "value": value})
    (folder / UNFINISHED).unlink(missing_ok=True)


def _write(path: Path, record: dict[str, Any]) -> None:
    write_text(path, json.dumps(record) + "\n")


def one_line(error: BaseException) -> str:
    """An error as a line of a table: its message, with its kind where it is a fault of ours."""
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    text = text.replace(":;", ":")
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def results_of(folder: Path) -> dict[str, float]:
    """Every number that a run left: `metrics.json`, and the last of each in `metrics.csv`.

    An interval is two: ``SET.TASK.interval.METRIC.low`` and ``.high``.
    """
    results: dict[str, float] = {}
    table, report = folder / "metrics.csv", folder / "metrics.json"
    if table.exists():
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                results |= {name: float(text) for name, text in row.items() if text and name}
    if report.exists():
        results |= dict(_numbers(json.loads(report.read_text())))
    return results


def _numbers(tree: Any, where: str = "") -> list[tuple[str, float]]:
    if isinstance(tree, dict):
        return [
            item
            for key, child in tree.items()
            for item in _numbers(child, f"{where}.{key}" if where else str(key))
        ]
    if ".interval." in where and isinstance(tree, list) and len(tree) == 2:
        return _numbers(dict(zip(("low", "high"), tree, strict=True)), where)
    is_number = isinstance(tree, int | float) and not isinstance(tree, bool)
    return [(where, float(tree))] if is_number else []


def value_of(folder: Path, metric: str | None) -> float | None:
    """The value that a sweep optimizes, from what the run left; None where it optimizes none.

    Raises:
        SweepError: if there is no such metric; names those that there are.
    """
    if metric is None:
        return None
    results = results_of(folder)
    if metric not in results:
        names = ", ".join(name for name in results if ".interval." not in name)
        raise SweepError(f"sweep_metric={metric}: the run left no such number; there are {names}")
    return results[metric]
