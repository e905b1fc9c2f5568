"""What an evaluation found, as values, as a nested table of numbers, and as a terminal table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table
from torch import Tensor

from multimodal.evaluation.retrieval import Retrieval
from multimodal.evaluation.zero_shot import ZeroShot


@dataclass(frozen=True, slots=True)
class Example:
    """A query and its nearest items, as indices of samples in their source.

    Attributes:
        query: sample index.
        neighbours: (sample index, similarity, whether it is right), the nearest first.
        rank: expected rank of the first right item.
    """

    query: int
    neighbours: list[tuple[int, float, bool]]
    rank: float


@dataclass(frozen=True, slots=True)
class RetrievalResult:
    """One direction of retrieval in one set.

    Attributes:
        set: name of the evaluation set.
        query: modality of the queries.
        gallery: modality of the gallery.
        trained: whether the two were trained together; emergent if not.
        scores: the model's.
        baseline: what the sounds' durations alone score, where asked for.
        examples: queries with their neighbours, for the report.
        matrix: ``[n, n]`` similarities of some of the set's samples, right answers on the
            diagonal and among samples of one key; None for a direction whose reverse has one.
    """

    set: str
    query: str
    gallery: str
    trained: bool
    scores: Retrieval
    baseline: Retrieval | None = None
    examples: list[Example] = field(default_factory=list)
    matrix: Tensor | None = None

    @property
    def key(self) -> str:
        """``image_to_text``."""
        return f"{self.query}_to_{self.gallery}"


@dataclass(frozen=True, slots=True)
class ZeroShotResult:
    """One classification by prompts in one set.

    Attributes:
        set: name of the evaluation set.
        modality: what was classified.
        label: metadata key of the classes.
        trained: whether the modality was trained together with text.
        scores: the model's.
        classes: names, in the order of the confusion matrix.
        prompts: the templates.
    """

    set: str
    modality: str
    label: str
    trained: bool
    scores: ZeroShot
    classes: list[str]
    prompts: list[str]

    @property
    def key(self) -> str:
        """``zero_shot_depth_category``."""
        return f"zero_shot_{self.modality}_{self.label}"


@dataclass(frozen=True, slots=True)
class Missing:
    """A set, or a part of one, that could not be evaluated, and why."""

    set: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class SetInfo:
    """Name, split, number of samples and description of an evaluation set."""

    name: str
    split: str
    samples: int
    description: str


@dataclass(slots=True)
class Results:
    """All that one evaluation found."""

    sets: dict[str, SetInfo] = field(default_factory=dict)
    retrievals: list[RetrievalResult] = field(default_factory=list)
    zero_shots: list[ZeroShotResult] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def metrics(self) -> dict[str, Any]:
        """The numbers as ``{set: {task: {metric: value}}}``, fractions of 1 and counts.

        ``metrics["emoji_unseen"]["image_to_text"]["r@1"]``; beside it ``chance``, ``gallery``,
        ``queries``, ``trained``. What is missing stands under its set with its reason.
        """
        table: dict[str, Any] = {
            info.name: {
                "split": info.split,
                "samples": info.samples,
                "description": info.description,
            }
            for info in self.sets.values()
        }
        for result in self.retrievals:
            row = {**_retrieval_row(result.scores), "trained": result.trained}
            if result.baseline is not None:
                row["duration_only"] = _retrieval_row(result.baseline)
            table[result.set][result.key] = row
        for zero_shot in self.zero_shots:
            scores = zero_shot.scores
            table[zero_shot.set][zero_shot.key] = {
                "top@1": scores.top1,
                "top@5": scores.top5,
                "mean_per_class": scores.mean_per_class,
                "chance": {"top@1": scores.chance_top1, "top@5": scores.chance_top5},
                "majority": scores.majority,
                "samples": scores.samples,
                "classes": scores.classes,
                "trained": zero_shot.trained,
            }
        for gap in self.missing:
            table.setdefault(gap.set, {}).setdefault("missing", {})[gap.what] = gap.reason
        return table

    def table(self) -> Table:
        """The figures in percent for a terminal, trained pairs before emergent ones."""
        table = Table(
            title="Held-out results, in percent",
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE,
        )
        table.add_column("query → answer", no_wrap=True)
        for name in ("top 1", "top 5", "top 10", "chance", "among"):
            table.add_column(name, justify="right", no_wrap=True)
        every: list[RetrievalResult | ZeroShotResult] = [*self.retrievals, *self.zero_shots]
        for trained, title in ((True, "Trained together"), (False, "Never trained together")):
            if any(row.trained is trained for row in every):
                table.add_row(f"[bold]{title}")
            for name in self.sets:
                rows = [row for row in every if (row.set, row.trained) == (name, trained)]
                if rows:
                    table.add_row(f"[bold cyan]{name}")
                for row in rows:
                    for cells in _cells(row):
                        table.add_row(*cells)
            table.add_section()
        gaps = [f"{gap.set}, {gap.what}: {gap.reason}" for gap in self.missing]
        table.caption = "\n".join(["Not evaluated", *gaps]) if gaps else None
        return table


def _cells(result: RetrievalResult | ZeroShotResult) -> list[list[str]]:
    """The lines of one result: the model's, and the baseline's under it."""
    if isinstance(result, ZeroShotResult):
        scores = result.scores
        figures = [_percent(scores.top1), _percent(scores.top5), "", _percent(scores.chance_top1)]
        return [[f"  {result.modality} → {result.label}, zero-shot", *figures, str(scores.classes)]]
    lines = [(f"  {result.query} → {result.gallery}", result.scores)]
    if result.baseline is not None:
        lines.append(("    by duration alone", result.baseline))
    return [
        [
            name,
            *(_percent(value) for value in scores.recall.values()),
            _percent(next(iter(scores.chance_recall.values()))),
            str(scores.gallery),
        ]
        for name, scores in lines
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _retrieval_row(scores: Retrieval) -> dict[str, Any]:
    return {
        **{f"r@{k}": value for k, value in scores.recall.items()},
        "median_rank": scores.median_rank,
        "map": scores.mean_average_precision,
        "chance": {
            **{f"r@{k}": value for k, value in scores.chance_recall.items()},
            "map": scores.chance_mean_average_precision,
        },
        "queries": scores.queries,
        "gallery": scores.gallery,
        "unanswerable": scores.unanswerable,
    }
