"""What an evaluation found, as values, as a nested table of numbers, and as a terminal table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.table import Table
from torch import Tensor

from multimodal.evaluation.diagnostics import PairDiagnostics, SpaceDiagnostics
from multimodal.evaluation.probe import Probe
from multimodal.evaluation.retrieval import Retrieval
from multimodal.evaluation.tasks import TaskResult
from multimodal.evaluation.zero_shot import ZeroShot


@dataclass(frozen=True, slots=True)
class Example:
    """A query and its nearest items, by the indices that ``scoring.Embedded`` has.

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
        """``image_to_text``; ``image+text_to_depth`` of a composed query."""
        return f"{self.query.replace(' ', '')}_to_{self.gallery}"

    @property
    def composed(self) -> bool:
        """Whether the query is a sum of several modalities."""
        return " " in self.query


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
class ProbeResult:
    """One probe of a set's frozen embeddings.

    Attributes:
        set: name of the evaluation set.
        modality: what was classified.
        label: metadata key of the classes.
        scores: what was found.
    """

    set: str
    modality: str
    label: str
    scores: Probe

    @property
    def key(self) -> str:
        """``probe_imu_label``."""
        return f"probe_{self.modality}_{self.label}"


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """The shape of one set's embeddings.

    Attributes:
        set: name of the evaluation set.
        spaces: by modality.
        pairs: by two modalities, in the order of the source.
    """

    set: str
    spaces: dict[str, SpaceDiagnostics]
    pairs: dict[tuple[str, str], PairDiagnostics]


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    """One set's embeddings in two dimensions.

    Attributes:
        set: name of the evaluation set.
        points: ``[n, 2]`` in [0, 1].
        modalities: n names.
        labels: n classes; empty where there is no label to colour by.
        captions: n names of samples.
    """

    set: str
    points: Tensor
    modalities: list[str]
    labels: list[str]
    captions: list[str]


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
    probes: list[ProbeResult] = field(default_factory=list)
    diagnostics: list[Diagnostics] = field(default_factory=list)
    maps: list[EmbeddingMap] = field(default_factory=list)
    tasks: list[TaskResult] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def metrics(self) -> dict[str, Any]:
        """The numbers as ``{set: {task: {metric: value}}}``, fractions of 1 and counts.

        ``metrics["emoji_unseen"]["image_to_text"]["r@1"]``; beside it ``chance``, ``gallery``,
        ``queries``, ``trained``. Probes and ``diagnostics`` have blocks of their own. What is
        missing stands under its set with its reason.
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
                "map": scores.mean_average_precision,
                "chance": {
                    "top@1": scores.chance_top1,
                    "top@5": scores.chance_top5,
                    "map": scores.chance_mean_average_precision,
                },
                "majority": scores.majority,
                "samples": scores.samples,
                "classes": scores.classes,
                "trained": zero_shot.trained,
            }
        for probed in self.probes:
            table[probed.set][probed.key] = _probe_row(probed.scores)
        for shape in self.diagnostics:
            table[shape.set]["diagnostics"] = {
                **{name: asdict(space) for name, space in shape.spaces.items()},
                **{f"{a}_{b}": asdict(pair) for (a, b), pair in shape.pairs.items()},
            }
        for task in self.tasks:
            table[task.set][task.task] = task.row()
        for gap in self.missing:
            table.setdefault(gap.set, {}).setdefault("missing", {})[gap.what] = gap.reason
        return table

    def flat(self) -> dict[str, float]:
        """The figures that a curve can be drawn of: ``SET/TASK/METRIC`` -> value.

        Of tasks on a fusion also each modality's: ``SET/TASK/without/MODALITY/METRIC`` and so on.
        """
        figures = {
            f"{name}/{task}/{metric}": float(value)
            for name, tasks in self.metrics().items()
            for task, scores in tasks.items()
            if isinstance(scores, dict) and "chance" in scores
            for metric, value in scores.items()
            if metric in ("r@1", "r@5", "r@10", "map", "top@1", "top@5", "mean_per_class")
        }
        for each in self.tasks:
            figures |= {f"{each.set}/{each.task}/{k}": v for k, v in each.flat().items()}
        return figures

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
        if self.probes:
            table.add_row("[bold]Classifiers on frozen embeddings")
        for probed in self.probes:
            scores = probed.scores
            name = f"  {probed.set}, {probed.modality} → {probed.label}"
            chance, classes = _percent(scores.chance), str(scores.classes)
            for kind, value in (("linear", scores.linear), ("neighbours", scores.neighbours)):
                table.add_row(f"{name}, {kind}", _percent(value.top1), "", "", chance, classes)
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


def _probe_row(scores: Probe) -> dict[str, Any]:
    return {
        "linear": asdict(scores.linear),
        "neighbours": {**asdict(scores.neighbours), "k": scores.k},
        "few_shot": {str(few.shots): asdict(few) for few in scores.few_shot},
        "guess": scores.chance,
        "majority": scores.majority,
        "classes": scores.classes,
        "train": scores.train,
        "test": scores.test,
    }


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
