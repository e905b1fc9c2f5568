"""Classifiers trained on frozen embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from multimodal.evaluation.evaluators.base import (
    EvaluationContext,
    Line,
    Missing,
    Outcome,
    label_of,
    percent,
)
from multimodal.evaluation.metrics.probe import Accuracy, Probe, Samples, probe
from multimodal.evaluation.report.sections import Section
from multimodal.evaluation.uncertainty import CHANCE, MAJORITY, mark, not_above, percents

INTRO = (
    "Simple classifiers on frozen embeddings: a linear one, a vote of the nearest neighbours, and "
    "a linear one that has seen only a few samples of each class."
)


@dataclass(frozen=True, slots=True)
class ProbeResult(Outcome):
    """One probe of a set's frozen embeddings.

    Attributes:
        set: name of the evaluation set.
        modality: what was classified.
        label: metadata key of the classes.
        scores: of the classifiers.
    """

    set: str
    modality: str
    label: str
    scores: Probe

    @property
    def key(self) -> str:
        """``probe_imu_label``."""
        return f"probe_{self.modality}_{self.label}"

    @property
    def group(self) -> str:
        """Probes are shown together."""
        return "Classifiers on frozen embeddings"

    def row(self) -> dict[str, Any]:
        """Accuracies by kind of classifier, and counts."""
        scores = self.scores
        return {
            "linear": self._row(scores.linear),
            "neighbours": {**self._row(scores.neighbours), "k": scores.k},
            "few_shot": {str(few.shots): asdict(few) for few in scores.few_shot},
            "guess": scores.chance,
            "majority": scores.majority,
            "classes": scores.classes,
            "train": scores.train,
            "test": scores.test,
        }

    def reached(self, accuracy: Accuracy) -> list[str]:
        """What a classifier is not distinguishable from: chance, the commonest answer."""
        references = {CHANCE: self.scores.chance, MAJORITY: self.scores.majority}
        return [] if accuracy.interval is None else not_above(accuracy.interval, references)

    def _row(self, accuracy: Accuracy) -> dict[str, Any]:
        row: dict[str, Any] = {
            "top1": accuracy.top1,
            "mean_per_class": accuracy.mean_per_class,
            "strength": accuracy.strength,
        }
        if accuracy.interval is not None:
            row["interval"] = {"top1": list(accuracy.interval)}
            row["not_above"] = self.reached(accuracy)
        return row

    def lines(self) -> list[Line]:
        """A line for each kind of classifier."""
        scores = self.scores
        name = f"  {self.modality} → {self.label}"
        chance, classes = percent(scores.chance), str(scores.classes)
        return [
            Line(
                f"{name}, {kind}",
                percent(accuracy.top1),
                chance=chance,
                among=classes,
                interval="" if accuracy.interval is None else percents(accuracy.interval),
                marked=bool(self.reached(accuracy)),
            )
            for kind, accuracy in (("linear", scores.linear), ("neighbours", scores.neighbours))
        ]

    @classmethod
    def section(cls, outcomes: Sequence[ProbeResult]) -> Section:
        """A table, and a chart of accuracy by samples per class."""
        return Section("probes", "Probes", _body(outcomes), INTRO, place=20)


@dataclass
class ProbeTask:
    """A classifier trained on frozen embeddings (`probe.probe`), tested on the set.

    Args:
        modality: to classify.
        label: the metadata key that holds a sample's class, a string.
        train: samples to learn from (``multimodal.data.Source``).
        validation: samples that choose the strength of the L2 penalty; null holds out a fifth of
            the training samples.
        shots: samples of each class in few-shot; an empty list for none.
        draws: how often they are drawn.

    Raises:
        ValueError: if given fewer than one shot or draw.
    """

    modality: str
    label: str
    train: Any
    validation: Any | None = None
    shots: Sequence[int] = (1, 2, 4, 8, 16)
    draws: int = 3

    def __post_init__(self) -> None:
        if self.draws < 1 or any(shots < 1 for shots in self.shots):
            raise ValueError(
                f"shots and draws must be at least 1; got {list(self.shots)} and {self.draws}"
            )

    def evaluate(self, context: EvaluationContext) -> Iterator[Outcome | Missing]:
        """One result; a matter of seconds on some thousand vectors, so every rank does the same."""
        if not context.has(self.modality):
            return
        numbers: dict[str, int] = {}

        def samples(vectors: Tensor, metadata: Sequence[Mapping[str, Any]]) -> Samples:
            labels = [label_of(sample, self.label) for sample in metadata]
            targets = [numbers.setdefault(label, len(numbers)) for label in labels]
            return Samples(vectors.numpy(), torch.tensor(targets).numpy())

        def embed(source: Any) -> Samples:
            rows = context.embedder.source(source, [self.modality])
            return samples(rows.embeddings[self.modality], rows.metadata)

        train = embed(self.train)
        validation = None if self.validation is None else embed(self.validation)
        test = samples(context.samples.embeddings[self.modality], context.metadata)
        scores = probe(train, test, validation, self.shots, self.draws)
        yield ProbeResult(context.samples.name, self.modality, self.label, scores)


def _shown(result: ProbeResult, accuracy: Accuracy) -> str:
    interval = "" if accuracy.interval is None else f" ({percents(accuracy.interval)})"
    return f"{percent(accuracy.top1)}{interval} {mark(result.reached(accuracy))}".strip()


def _body(probes: Sequence[ProbeResult]) -> Markup:
    from multimodal.evaluation.report.charts import line_chart
    from multimodal.evaluation.report.tables import table

    rows = [
        (
            f"{each.modality} → {each.label}",
            each.set,
            _shown(each, each.scores.linear),
            percent(each.scores.linear.mean_per_class),
            _shown(each, each.scores.neighbours),
            percent(each.scores.chance),
            f"{each.scores.classes}",
            f"{each.scores.train:,}",
            f"{each.scores.test:,}",
        )
        for each in probes
    ]
    head = (
        "probe", "set", "linear top 1 %", "mean per class", "neighbours", "chance", "classes",
        "train", "test",
    )  # fmt: skip
    charts = [
        Markup(
            '<figure class="panel"><figcaption><b>{}</b> {} · top 1 % by samples per class'
            '</figcaption>{}<p class="muted">{}</p></figure>'
        ).format(
            f"{each.modality} → {each.label}",
            each.set,
            line_chart(
                f"{each.modality} {each.label} few-shot",
                {"top 1": [(few.shots, 100 * few.mean) for few in each.scores.few_shot]},
            ),
            " · ".join(
                f"{few.shots}: {percent(few.mean)} ± {percent(few.deviation)}"
                for few in each.scores.few_shot
            ),
        )
        for each in probes
        if each.scores.few_shot
    ]
    return table(head, rows) + Markup('<div class="grid">{}</div>').format(Markup("").join(charts))
