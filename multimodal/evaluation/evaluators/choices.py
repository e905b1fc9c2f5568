"""Choosing between sentences, and between pictures, that differ in one thing only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimodal.core.bootstrap import Interval, mean_interval
from multimodal.evaluation.evaluators.base import (
    EMERGENT,
    TRAINED,
    EvaluationContext,
    Line,
    Missing,
    Outcome,
    percent,
)
from multimodal.evaluation.uncertainty import CHANCE, not_above, percents

Hits = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ChoiceResult(Outcome):
    """How often the right one was chosen.

    Attributes:
        set: name of the evaluation set.
        name: of the question.
        trained: whether the two modalities were trained together.
        hits: figure -> 0 or 1 for each of its questions (0.5 where both are as near).
        chance: figure -> what a guess scores.
        mean: whether the figures have a mean of their own, each counting the same.
    """

    set: str
    name: str
    trained: bool
    hits: Mapping[str, Hits]
    chance: Mapping[str, float]
    mean: bool = False

    @property
    def key(self) -> str:
        """The question's name."""
        return self.name

    @property
    def group(self) -> str:
        """Trained or emergent."""
        return TRAINED if self.trained else EMERGENT

    def intervals(self) -> dict[str, Interval]:
        """95 % intervals over the questions."""
        return {name: mean_interval(hits) for name, hits in self.hits.items()}

    def row(self) -> dict[str, Any]:
        """The figures, ``mean`` where there is one, chance and counts."""
        figures: dict[str, Any] = {name: float(hits.mean()) for name, hits in self.hits.items()}
        if self.mean:
            figures["mean"] = float(np.mean([hits.mean() for hits in self.hits.values()]))
        return {
            **figures,
            "chance": dict(self.chance),
            "interval": {name: list(bounds) for name, bounds in self.intervals().items()},
            "samples": {name: len(hits) for name, hits in self.hits.items()},
            "trained": self.trained,
        }

    def curves(self) -> dict[str, float]:
        """Every figure."""
        figures = self.row()
        return {name: figures[name] for name in (*self.hits, *(["mean"] if self.mean else []))}

    def lines(self) -> list[Line]:
        """A line for each figure."""
        lines = []
        for name, hits in self.hits.items():
            interval = mean_interval(hits)
            reached = not_above(interval, {CHANCE: self.chance[name]})
            lines.append(Line(
                f"  {self.name}: {name}", percent(float(hits.mean())),
                chance=percent(self.chance[name]), among=str(len(hits)),
                interval=percents(interval), marked=bool(reached),
            ))  # fmt: skip
        return lines


@dataclass
class CaptionChoice:
    """Is the sample nearer to its own caption than to one with a word changed (SugarCrepe)?

    Hsieh et al. 2023 (arXiv:2306.14610), Section 4. Where both are as near, half a hit.

    Args:
        modality: of the samples.
        caption: JSON key of the right text.
        negative: JSON key of the wrong one.
        kind: JSON key of the kinds that are scored apart; null for all together.
        name: of the question in ``metrics.json``.
    """

    modality: str = "image"
    caption: str = "caption"
    negative: str = "negative_caption"
    kind: str | None = "kind"
    name: str = "caption_choice"

    def evaluate(self, context: EvaluationContext) -> Iterator[Outcome | Missing]:
        """One result, or that there is no tower for text.

        Raises:
            ValueError: if a sample lacks one of the texts.
        """
        if context.embedder.missing(["text"]):
            yield context.missing(self.name, "the model has no tower for text")
            return
        if not context.has(self.modality):
            return
        samples = context.samples.embeddings[self.modality].double()
        right, wrong = (
            (samples * context.embedder.values("text", self._texts(context, key)).double()).sum(1)
            for key in (self.caption, self.negative)
        )
        hits = ((right > wrong).double() + 0.5 * (right == wrong).double()).numpy()
        kinds = [str(each[self.kind]) if self.kind else "all" for each in context.metadata]
        embeddings = {
            kind: hits[[place for place, each in enumerate(kinds) if each == kind]]
            for kind in sorted(set(kinds))
        }
        yield ChoiceResult(
            context.samples.name, self.name, context.is_trained(self.modality, "text"), embeddings,
            dict.fromkeys(embeddings, 0.5), mean=self.kind is not None,
        )  # fmt: skip

    def _texts(self, context: EvaluationContext, key: str) -> list[str]:
        texts = [sample.get(key) for sample in context.metadata]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{self.name} needs a text under '{key}' in every sample's JSON")
        return [str(text) for text in texts]


@dataclass
class GroupMatching:
    """Are two samples and two texts of the same words matched (Winoground)?

    Thrush et al. 2022 (arXiv:2204.03162), Equations 1 to 3, with strict inequalities: ``text``:
    each picture is nearer to its own text; ``image``: each text is nearer to its own picture;
    ``group``: both.

    Args:
        modality: of the samples.
        other: of their texts.
        group: JSON key that the two samples of a group share.
        name: of the question in ``metrics.json``.
    """

    modality: str = "image"
    other: str = "text"
    group: str = "group"
    name: str = "matching"

    def evaluate(self, context: EvaluationContext) -> Iterator[Outcome | Missing]:
        """One result; groups of which a sample could not be read are listed as missing.

        Raises:
            ValueError: if a group has more than two samples, or none has two.
        """
        if not context.has(self.modality, self.other):
            return
        groups: dict[str, list[int]] = {}
        for place, sample in enumerate(context.metadata):
            groups.setdefault(str(sample.get(self.group)), []).append(place)
        if any(len(places) > 2 for places in groups.values()):
            raise ValueError(f"{self.name}: a group of '{self.group}' has more than two samples")
        pairs = torch.tensor([places for places in groups.values() if len(places) == 2])
        if not len(pairs):
            raise ValueError(f"{self.name}: no two samples share a value under '{self.group}'")
        if len(pairs) < len(groups):
            lost = len(groups) - len(pairs)
            yield context.missing(f"{lost} groups of {self.name}", "one of two cannot be read")
        one, two = (
            context.samples.embeddings[name].double()[pairs] for name in (self.modality, self.other)
        )
        similar_G22 = torch.einsum("gid,gjd->gij", one, two)  # samples by texts
        own = similar_G22.diagonal(dim1=1, dim2=2)
        text = (own > similar_G22.flip(2).diagonal(dim1=1, dim2=2)).all(dim=1)
        image = (own > similar_G22.flip(1).diagonal(dim1=1, dim2=2)).all(dim=1)
        hits = {"text": _hits(text), "image": _hits(image), "group": _hits(text & image)}
        trained = context.is_trained(self.modality, self.other)
        chance = {"text": 0.25, "image": 0.25, "group": 1 / 6}
        yield ChoiceResult(context.samples.name, self.name, trained, hits, chance)


def _hits(right: Tensor) -> Hits:
    return right.double().numpy()
