"""Mean and deviation over runs: multimodal summarize RUN_FOLDER ...

Reads each run's metrics.json and prints one Markdown table, a row per task, in percent. The 95 %
interval of R@1 or top 1 is over the held-out samples, its bounds averaged over the runs; what it
reaches in any run is named: chance, the commonest answer, the length of a sound alone.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from multimodal.core.bootstrap import Interval
from multimodal.core.errors import UserError
from multimodal.core.process.exits import errors_end_the_program
from multimodal.evaluation.uncertainty import NAMES, percents


def rows_of(metrics: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """(set, task) -> scores, for every task of a run."""
    return {
        (name, task): scores
        for name, tasks in metrics.items()
        if isinstance(tasks, dict)
        for task, scores in tasks.items()
        if isinstance(scores, dict) and "chance" in scores
    }


def spread(values: list[float]) -> str:
    """``12.3 ± 0.4``, of fractions, in percent; the deviation of the sample."""
    mean = 100 * statistics.mean(values)
    return (
        f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"
    )


def table(runs: list[dict[str, Any]]) -> str:
    """The Markdown table of the tasks that all ``runs`` have."""
    every = [rows_of(run) for run in runs]
    lines = [
        "| held-out set | task | | R@1 or top 1 | 95 % | not above | R@10 | chance | among |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for place, first in every[0].items():
        if not all(place in other for other in every):
            continue
        scores = [other[place] for other in every]
        name, task = place
        top = "r@1" if "r@1" in first else "top@1"
        ten = spread([s["r@10"] for s in scores]) if "r@10" in first else ""
        kind = "trained" if first["trained"] else "emergent"
        among = first.get("gallery") or f"{first['classes']} classes"
        lines.append(
            f"| {name} | {task.replace('_', ' ')} | {kind} | {spread([s[top] for s in scores])} | "
            f"{_bounds(scores, top)} | {_reached(scores)} | "
            f"{ten} | {100 * first['chance'][top]:.1f} | {among} |"
        )
    return "\n".join(lines)


def _bounds(scores: list[dict[str, Any]], top: str) -> str:
    """Empty where a run is of a version that wrote no intervals."""
    every = [s.get("interval", {}).get(top) for s in scores]
    if None in every:
        return ""
    return percents(Interval(*(statistics.mean(ends) for ends in zip(*every, strict=True))))


def _reached(scores: list[dict[str, Any]]) -> str:
    every = [name for s in scores for name in s.get("not_above", [])]
    named = {name: every.count(name) for name in dict.fromkeys(every)}
    if len(scores) == 1:
        return ", ".join(NAMES.get(name, name) for name in named)
    return ", ".join(f"{NAMES.get(n, n)} ({k} of {len(scores)})" for n, k in named.items())


def main(folders: list[str]) -> None:
    """Prints the table of the runs in ``folders``."""
    if not folders:
        sys.exit(__doc__)
    if folders[0] in ("-h", "--help"):
        print(__doc__)
        return
    print(table([metrics_of(Path(folder) / "metrics.json") for folder in folders]))


def metrics_of(file: Path) -> dict[str, Any]:
    """The results in ``file``.

    Raises:
        UserError: if it is missing, or holds something else.
    """
    if not file.is_file():
        raise UserError.mistake(f"no such file: {file}; give folders of finished runs")
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not the metrics.json of a run: {error}") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{file} is not the metrics.json of a run: it holds no JSON object")
    return metrics


def command() -> None:
    """`multimodal summarize` and `python scripts/summarize.py`."""
    with errors_end_the_program():
        main(sys.argv[1:])
