"""The report's part on tasks: their metrics, and each modality's relevance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from multimodal.evaluation.report.tables import table
from multimodal.evaluation.uncertainty import decimals, mark, reached
from multimodal.models.tasks.scores import Scores

if TYPE_CHECKING:
    from multimodal.evaluation.task_results import TaskResult

INTRO = (
    "Relevance of the modalities, over the whole set: the metric by a modality's own head, by the "
    "fused model that is given it alone, and by the one that is given all others; and the share "
    "of the attention that the modality gets where queries can choose, mean over layers and heads."
)


def tasks_body(results: Sequence[TaskResult]) -> Markup:
    """Tables of all tasks' metrics, and of each modality's relevance."""
    figures = [
        (
            f"{each.task}: {metric}",
            each.set,
            f"{value:.3f}",
            _interval(each.scores, metric),
            mark(reached(each.scores, metric)),
            _shown(each.scores.chance.get(metric)),
            f"{each.scores.samples:,}",
        )
        for each in results
        for metric, value in each.scores.values.items()
    ]
    relevance = [
        (
            f"{each.task}: {modality}",
            each.set,
            each.metric,
            *(_metric(part.get(modality), each.metric) for part in _parts(each)),
            _shown(each.scores.values[each.metric]),
            _shown(each.attention.get(modality)),
        )
        for each in results
        for modality in modalities(each)
    ]
    head = ("task", "set", "value", "95 % interval", "", "chance", "samples")
    return table(head, figures) + table(
        ("modality", "set", "metric", "own head", "alone", "all others", "all", "attention"),
        relevance,
    )


def modalities(result: TaskResult) -> list[str]:
    """Those of which the result says anything, in order."""
    parts = (*_parts(result), result.attention)
    return list(dict.fromkeys(name for part in parts for name in part))


def _parts(result: TaskResult) -> tuple[dict[str, Scores], dict[str, Scores], dict[str, Scores]]:
    return result.own, result.alone, result.without


def _metric(scores: Scores | None, metric: str) -> str:
    return _shown(None if scores is None else scores.values.get(metric))


def _interval(scores: Scores, metric: str) -> str:
    interval = scores.interval(metric)
    return "–" if interval is None else decimals(interval)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
