"""The shape of a set's embeddings: in figures, and as a map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from multimodal.core import distributed
from multimodal.evaluation.evaluators.base import (
    EvaluationContext,
    Missing,
    Outcome,
    evenly_spaced,
    label_of,
    name_of,
)
from multimodal.evaluation.metrics import diagnostics
from multimodal.evaluation.metrics.diagnostics import PairDiagnostics, SpaceDiagnostics
from multimodal.evaluation.metrics.tsne import tsne_points
from multimodal.evaluation.report.sections import Section

SPACE = (
    "Alignment: mean squared distance of the two embeddings of a sample (0 is best). Gap: distance "
    "between the modalities' means. Uniformity: how evenly the sphere is used (lower is more "
    "even). Effective rank: effectively used dimensions. Temperature: of the pair in training."
)
MAP = (
    "Every point is one input. Near points are near in the embedding space (t-SNE: distances "
    "between far groups mean little). Where modalities are aligned they mix, and classes gather."
)


@dataclass(frozen=True, slots=True)
class Diagnostics(Outcome):
    """The shape of one set's embeddings.

    Attributes:
        set: name of the evaluation set.
        spaces: by modality.
        pairs: by two modalities, in the order of the source.
    """

    set: str
    spaces: dict[str, SpaceDiagnostics]
    pairs: dict[tuple[str, str], PairDiagnostics]

    @property
    def key(self) -> str:
        """``diagnostics``."""
        return "diagnostics"

    def row(self) -> dict[str, Any]:
        """By modality and by pair."""
        return {
            **{name: asdict(space) for name, space in self.spaces.items()},
            **{f"{a}_{b}": asdict(pair) for (a, b), pair in self.pairs.items()},
        }

    @classmethod
    def section(cls, outcomes: Sequence[Diagnostics]) -> Section:
        """Tables of pairs and modalities."""
        return Section("space", "Space", _tables(outcomes), SPACE, place=90)


@dataclass
class SpaceTask:
    """Alignment, uniformity, gap and effective rank of a set's embeddings; asked of every set."""

    def evaluate(self, context: EvaluationContext) -> Iterator[Outcome | Missing]:
        """One outcome."""
        embeddings = context.samples.embeddings
        spaces = {
            name: SpaceDiagnostics(
                diagnostics.uniformity(vectors), diagnostics.effective_rank(vectors)
            )
            for name, vectors in embeddings.items()
        }
        pairs = {
            (a, b): PairDiagnostics(
                diagnostics.alignment(embeddings[a], embeddings[b]),
                diagnostics.modality_gap(embeddings[a], embeddings[b]),
                context.temperatures.get(frozenset((a, b))),
            )
            for a, b in combinations(embeddings, 2)
        }
        yield Diagnostics(context.samples.name, spaces, pairs)


def _tables(every: Sequence[Diagnostics]) -> Markup:
    from multimodal.evaluation.report.tables import table

    pairs = [
        (
            f"{a} · {b}",
            each.set,
            f"{pair.alignment:.3f}",
            f"{pair.gap:.3f}",
            "–" if pair.temperature is None else f"{pair.temperature:.4g}",
        )
        for each in every
        for (a, b), pair in each.pairs.items()
    ]
    spaces = [
        (name, each.set, f"{space.uniformity:.3f}", f"{space.effective_rank:.1f}")
        for each in every
        for name, space in each.spaces.items()
    ]
    return table(("pair", "set", "alignment", "gap", "temperature"), pairs) + table(
        ("modality", "set", "uniformity", "effective rank"), spaces
    )


@dataclass(frozen=True, slots=True)
class EmbeddingMap(Outcome):
    """One set's embeddings in two dimensions, for the report alone.

    Attributes:
        set: name of the evaluation set.
        points: ``[n, 2]`` in [0, 1].
        modalities: n names.
        labels: n classes; empty without a label to colour by.
        captions: n names of samples.
    """

    set: str
    points: Tensor
    modalities: list[str]
    labels: list[str]
    captions: list[str]

    @property
    def key(self) -> str:
        """``map``."""
        return "map"

    @classmethod
    def section(cls, outcomes: Sequence[EmbeddingMap]) -> Section:
        """A map for each set."""
        from multimodal.evaluation.report.embedding_map import draw_map

        body = Markup('<div class="grid wide">{}</div>').format(
            Markup("").join(draw_map(each) for each in outcomes)
        )
        return Section("map", "Map", body, MAP, place=10)


@dataclass
class MapTask:
    """A map of the set's embeddings in two dimensions, for the report.

    Args:
        samples: how many are shown, evenly spaced through the set; those of one label side by side.
        label: the metadata key to colour them by, beside their modality; null for the modality
            alone.

    Raises:
        ValueError: if given fewer than three samples.
    """

    samples: int = 150
    label: str | None = None

    def __post_init__(self) -> None:
        if self.samples < 3:
            raise ValueError(f"a map needs at least 3 samples; got {self.samples}")

    def evaluate(self, context: EvaluationContext) -> Iterator[Outcome | Missing]:
        """One map, of a point for each sample and modality; on the first rank, which draws it."""
        if distributed.rank() > 0:
            return
        metadata, embedded = context.metadata, context.samples
        labels = [label_of(sample, self.label) for sample in metadata] if self.label else []
        captions = [
            name_of(sample) or context.source.place(index).key
            for sample, index in zip(metadata, embedded.indices.tolist(), strict=True)
        ]
        order = list(range(len(captions)))
        if labels:
            order.sort(key=lambda index: labels[index])
        chosen = [order[place] for place in evenly_spaced(len(captions), self.samples)]
        modalities = list(embedded.embeddings)
        points = tsne_points(torch.cat([embedded.embeddings[name][chosen] for name in modalities]))
        yield EmbeddingMap(
            embedded.name,
            points,
            [name for name in modalities for _ in chosen],
            [labels[index] for _ in modalities for index in chosen] if labels else [],
            [captions[index] for _ in modalities for index in chosen],
        )
