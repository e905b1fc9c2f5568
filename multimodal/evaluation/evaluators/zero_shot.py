"""Classification by prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from multimodal.core.bootstrap import Interval, mean_interval
from multimodal.data.benchmarks.class_names import class_names, prompts
from multimodal.evaluation.evaluators.base import (
    CURVES,
    EMERGENT,
    TRAINED,
    Embedded,
    EvaluationContext,
    Line,
    Missing,
    Outcome,
    labels_of,
    percent,
)
from multimodal.evaluation.metrics.zero_shot import ZeroShot, class_embeddings, zero_shot
from multimodal.evaluation.uncertainty import CHANCE, MAJORITY, not_above, percents


@dataclass(frozen=True, slots=True)
class ZeroShotResult(Outcome):
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

    @property
    def group(self) -> str:
        """Trained or emergent."""
        return TRAINED if self.trained else EMERGENT

    @property
    def interval(self) -> Interval:
        """Of the accuracy."""
        return mean_interval(self.scores.ranked.hits[0].cpu().numpy())

    @property
    def not_above(self) -> list[str]:
        """What the accuracy is not distinguishable from: chance, the commonest answer."""
        references = {CHANCE: self.scores.chance_top1, MAJORITY: self.scores.majority}
        return not_above(self.interval, references)

    def row(self) -> dict[str, Any]:
        """Accuracies, chance and counts, with ``interval`` and ``not_above``."""
        intervals = {name: list(bounds) for name, bounds in self.scores.intervals().items()}
        return {
            **self._figures(),
            "interval": intervals,
            "not_above": self.not_above,
            "trained": self.trained,
        }

    def curves(self) -> dict[str, float]:
        """The accuracies and the mean average precision."""
        row = self._figures()
        return {name: row[name] for name in CURVES if name in row}

    def _figures(self) -> dict[str, Any]:
        scores = self.scores
        return {
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
        }

    def lines(self) -> list[Line]:
        """One line."""
        scores = self.scores
        figures = percent(scores.top1), percent(scores.top5), "", percent(scores.chance_top1)
        name = f"  {self.modality} → {self.label}, zero-shot"
        interval = percents(self.interval)
        return [Line(name, *figures, str(scores.classes), interval, bool(self.not_above))]


@dataclass
class ZeroShotTask:
    """Classification by prompts: the class whose texts embed nearest is the answer.

    Args:
        modality: to classify.
        label: the metadata key that holds a sample's class, a string, or a list of them.
        prompts: templates with one ``{}`` where the class's name goes; the embeddings of a class's
            prompts are averaged.
            Or the name of a list of templates (``imagenet``, see `class_names`).
        classes: the classes to choose from, or a table from class to its several names, or the name
            of such a table (``imagenet``, ``imagenet_a``, ``imagenet_r``); null takes the labels
            that occur in the set.
        several: what several names of a class make of it: their ``mean`` embedding, or the nearest
            of them (``max``), as ImageBind scores the class "others" of NYU.

    Raises:
        ValueError: if given no template, or one without exactly one ``{}``, an unknown list, or any
            other ``several``.
    """

    modality: str
    label: str
    prompts: Sequence[str] | str = ("{}",)
    classes: Sequence[str] | Mapping[str, Sequence[str]] | str | None = None
    several: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            self.prompts = prompts(self.prompts)
        if isinstance(self.classes, str):
            self.classes = class_names(self.classes)
        if self.several not in ("mean", "max"):
            raise ValueError(f"several must be 'mean' or 'max', got {self.several!r}")
        if not self.prompts or any(prompt.count("{}") != 1 for prompt in self.prompts):
            raise ValueError(
                "prompts must be templates with one {} for the class's name; "
                f"got {list(self.prompts)}"
            )

    def evaluate(self, context: EvaluationContext) -> Iterator[Outcome | Missing]:
        """One result, or that there is no tower for text."""
        if context.embedder.missing(["text"]):
            yield context.missing(f"zero-shot {self.label}", "the model has no tower for text")
            return
        if not context.has(self.modality):
            return
        labels = [labels_of(sample, self.label) for sample in context.metadata]
        present = [name for names in labels for name in names]
        of_names = {
            name: [context.embedder.values("text", self.texts(group)) for group in self._groups(of)]
            for name, of in self.names(present).items()
        }
        trained = context.is_trained(self.modality, "text")
        yield score_zero_shot(context.samples, self, labels, of_names, trained)

    def _groups(self, names: Sequence[str]) -> list[list[str]]:
        """The names of a class that one embedding stands for."""
        return [list(names)] if self.several == "mean" else [[name] for name in names]

    def names(self, present: Sequence[str]) -> dict[str, list[str]]:
        """Class -> its names, for the labels ``present`` in the set.

        Raises:
            ValueError: if a label is not one of the configured classes.
        """
        if self.classes is None:
            return {label: [label] for label in sorted(set(present))}
        if isinstance(self.classes, Mapping):
            table = {name: list(names) for name, names in self.classes.items()}
        else:
            table = {name: [name] for name in self.classes}
        strays = sorted(set(present) - table.keys())
        if strays:
            raise ValueError(
                f"the labels {strays} under '{self.label}' are none of the classes {sorted(table)}"
            )
        return table

    def texts(self, names: Sequence[str]) -> list[str]:
        """The prompts of one class: every template with every name."""
        return [prompt.format(name) for name in names for prompt in self.prompts]


def score_zero_shot(
    embedded: Embedded,
    task: ZeroShotTask,
    labels: Sequence[Sequence[str]],
    prompt_embeddings: Mapping[str, Sequence[Tensor]],
    trained: bool,
) -> ZeroShotResult:
    """Classification of ``task.modality`` by prompts.

    Under a process group every rank has to call; each scores its share.

    Args:
        embedded: the set.
        task: to evaluate.
        labels: of N samples, one class name each, or several.
        prompt_embeddings: class -> ``[P, D]`` of each of its groups of names, embeddings of their
            prompts; the nearest group counts.
        trained: whether the modality was trained together with text.

    Raises:
        ValueError: if given NaN.
    """
    classes = list(prompt_embeddings)
    places = {name: place for place, name in enumerate(classes)}
    if all(len(names) == 1 for names in labels):
        targets = torch.tensor([places[name] for [name] in labels])
    else:
        targets = torch.zeros(len(labels), len(classes), dtype=torch.bool)
        for row, names in zip(targets, labels, strict=True):
            row[[places[name] for name in names]] = True
    vectors, groups = embedded.embeddings[task.modality], list(prompt_embeddings.values())
    of_names = class_embeddings([rows for group in groups for rows in group])
    owners = torch.tensor([place for place, group in enumerate(groups) for _ in group])
    scores = zero_shot(vectors, of_names, targets, shared=True, owners=owners)
    return ZeroShotResult(
        embedded.name, task.modality, task.label, trained, scores, classes, list(task.prompts)
    )
