"""Results of a fusion model on its tasks: with all modalities, with one alone, and without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from multimodal.evaluation.evaluators.base import Outcome
from multimodal.evaluation.report.sections import Section
from multimodal.evaluation.uncertainty import LEGEND, MARK, decimals, reached
from multimodal.models.tasks.scores import Scores


@dataclass(slots=True)
class TaskResult(Outcome):
    """One task on one held-out set.

    Attributes:
        set: name of the evaluation set.
        task: name of the task.
        scores: with all modalities that a sample has.
        own: modality -> scores of that modality's own head.
        alone: modality -> scores of the fused model with only this modality.
        without: modality -> scores of the fused model with all other modalities.
        attention: modality -> its share of the attention that could have gone elsewhere.
    """

    set: str
    task: str
    scores: Scores
    own: dict[str, Scores] = field(default_factory=dict)
    alone: dict[str, Scores] = field(default_factory=dict)
    without: dict[str, Scores] = field(default_factory=dict)
    attention: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The task's name."""
        return self.task

    @property
    def metric(self) -> str:
        """The metric to look at first."""
        return next(iter(self.scores.values))

    def row(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``; ``chance`` beside every metric that has one.

        ``interval`` of every metric that has one, and ``not_above`` of the first.
        """
        row: dict[str, Any] = {
            **_row(self.scores),
            "chance": self.scores.chance,
            "not_above": reached(self.scores, self.metric),
            "samples": self.scores.samples,
        }
        for name in ("own", "alone", "without"):
            parts: dict[str, Scores] = getattr(self, name)
            if parts:
                row[name] = {modality: _row(scores) for modality, scores in parts.items()}
        if self.attention:
            row["attention"] = self.attention
        return row

    def curves(self) -> dict[str, float]:
        """``METRIC``, ``own/MODALITY/METRIC`` and so on, ``attention/MODALITY`` -> value."""
        figures = dict(self.scores.values)
        for name in ("own", "alone", "without"):
            parts: dict[str, Scores] = getattr(self, name)
            for modality, scores in parts.items():
                figures |= {f"{name}/{modality}/{k}": v for k, v in scores.values.items()}
        return figures | {f"attention/{name}": share for name, share in self.attention.items()}

    @classmethod
    def section(cls, outcomes: Sequence[TaskResult]) -> Section:
        """Tables of all tasks' metrics, and of each modality's relevance."""
        from multimodal.evaluation.report.tasks import INTRO, tasks_body

        return Section("tasks", "Tasks", tasks_body(outcomes), INTRO, place=0)


def tasks_table(results: Sequence[TaskResult]) -> Table:
    """The figures for a terminal, those of fractions in percent."""
    table = Table(
        title="Tasks on held-out data", title_justify="left", box=box.SIMPLE, caption_justify="left"
    )
    table.add_column("set, task, given", no_wrap=True)
    for name in ("metric", "value", "(95 %)", "", "chance", "samples"):
        table.add_column(name, justify="right", no_wrap=True)

    def add(name: str, scores: Scores, metric: str) -> None:
        style = "dim" if reached(scores, metric) else None
        table.add_row(name, metric, *_cells(scores, metric), style=style)

    for result in results:
        metric = result.metric
        table.add_row(f"[bold cyan]{result.set}[/] {result.task}")
        add("  all modalities", result.scores, metric)
        for other in list(result.scores.values)[1:]:
            add("", result.scores, other)
        for title, parts in (
            ("  {} by its own head", result.own),
            ("  {} alone, fused", result.alone),
            ("  all but {}", result.without),
        ):
            for modality, scores in parts.items():
                add(title.format(modality), scores, metric)
        table.add_section()
    if any(result.scores.resampled for result in results):
        table.caption = LEGEND
    return table


def _row(scores: Scores) -> dict[str, Any]:
    intervals = {name: list(compute()) for name, compute in scores.resampled.items()}
    return {**scores.values, **({"interval": intervals} if intervals else {})}


def _cells(scores: Scores, metric: str) -> list[str]:
    chance = scores.chance.get(metric)
    shown = "" if chance is None else f"{chance:.3f}"
    interval = scores.interval(metric)
    bounds = "" if interval is None else f"({decimals(interval)})"
    sign = MARK if reached(scores, metric) else ""
    return [f"{scores.values[metric]:.3f}", bounds, sign, shown, f"{scores.samples:,}"]
