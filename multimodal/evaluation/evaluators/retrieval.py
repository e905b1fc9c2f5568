"""Retrieval between the modalities of a set, and by sums of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from multimodal.core.bootstrap import Interval, mean_interval
from multimodal.core.names.modalities import TOGETHER
from multimodal.core.similarity.similarities import COSINE, Comparison, Similarity
from multimodal.evaluation.evaluators.base import (
    CURVES,
    EMERGENT,
    TRAINED,
    Embedded,
    EvaluationContext,
    Line,
    Missing,
    Outcome,
    evenly_spaced,
    percent,
)
from multimodal.evaluation.evaluators.duration import by_duration, lengths_of
from multimodal.evaluation.metrics.ground_truth import first_of_each, merge_groups
from multimodal.evaluation.metrics.retrieval import (
    Retrieval,
    nearest,
    retrieval,
    retrieval_by_scalar,
)
from multimodal.evaluation.uncertainty import CHANCE, DURATION, not_above, percents
from multimodal.inference.combine import combine

NEIGHBOURS, MATRIX_SIZE = 5, 64


@dataclass(frozen=True, slots=True)
class Example:
    """A query and its nearest items, by the indices that `Embedded` has.

    Attributes:
        query: sample index.
        neighbours: (sample index, similarity, whether it is right), the nearest first.
        rank: expected rank of the first right item.
    """

    query: int
    neighbours: list[tuple[int, float, bool]]
    rank: float


@dataclass(frozen=True, slots=True)
class RetrievalResult(Outcome):
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
        """``image_to_text``; ``image+text_to_depth`` of a sum, ``image&text_to_depth`` of both."""
        return f"{self.query.replace(' ', '')}_to_{self.gallery}"

    @property
    def composed(self) -> bool:
        """Whether a side is of several modalities: a sum of them, or a joint embedding."""
        return " " in self.query or any(TOGETHER in side for side in (self.query, self.gallery))

    @property
    def group(self) -> str:
        """Trained or emergent."""
        return TRAINED if self.trained else EMERGENT

    @property
    def interval(self) -> Interval:
        """Of the recall at the first depth."""
        return self.scores.recall_interval(next(iter(self.scores.recall)))

    @property
    def not_above(self) -> list[str]:
        """What the recall at the first depth is not distinguishable from: chance, duration alone.

        Of the duration: if its score lies within the interval or above, or if the interval of the
        difference, query by query, reaches 0.
        """
        reached = _not_above_chance(self.scores)
        if self.baseline is not None:
            first = next(iter(self.scores.recall))
            ahead = self.scores.hits(first) - self.baseline.hits(first)
            difference = mean_interval(ahead.numpy(), bounds=(-1.0, 1.0))
            if not_above(self.interval, {DURATION: self.baseline.recall[first]}) or not_above(
                difference, {DURATION: 0.0}
            ):
                reached.append(DURATION)
        return reached

    def row(self) -> dict[str, Any]:
        """Recalls, ranks, chance and counts, with ``interval`` and ``not_above``."""
        row = {**_row(self.scores), **_bounds(self.scores), "trained": self.trained}
        row["not_above"] = self.not_above
        if self.baseline is not None:
            row["duration_only"] = {**_row(self.baseline), **_bounds(self.baseline)}
        return row

    def curves(self) -> dict[str, float]:
        """The recalls and the mean average precision."""
        row = _row(self.scores)
        return {name: row[name] for name in CURVES if name in row}

    def lines(self) -> list[Line]:
        """The model's, and the baseline's under it."""
        lines = [_line(f"  {self.query} → {self.gallery}", self.scores, self.not_above)]
        if self.baseline is not None:
            reached = _not_above_chance(self.baseline)
            lines.append(_line("    by duration alone", self.baseline, reached))
        return lines


def _not_above_chance(scores: Retrieval) -> list[str]:
    first = next(iter(scores.recall))
    return not_above(scores.recall_interval(first), {CHANCE: scores.chance_recall[first]})


def _bounds(scores: Retrieval) -> dict[str, Any]:
    intervals = {name: list(bounds) for name, bounds in scores.intervals().items()}
    return {"interval": intervals, "not_above": _not_above_chance(scores)}


def _row(scores: Retrieval) -> dict[str, Any]:
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


def _line(name: str, scores: Retrieval, reached: Sequence[str]) -> Line:
    top_1, top_5, top_10 = (percent(value) for value in scores.recall.values())
    chance = percent(next(iter(scores.chance_recall.values())))
    interval = percents(scores.recall_interval(next(iter(scores.recall))))
    among = str(scores.gallery)
    return Line(name, top_1, top_5, top_10, chance, among, interval, bool(reached))


@dataclass
class RetrievalTask:
    """Every distinct query among every distinct item, for ordered pairs of modalities.

    Args:
        pairs: (query, gallery) modalities.
        duration_baseline: show, beside retrieval by sound, what the sounds' lengths alone score.
        gallery: queries drawn with their neighbours in the report, per direction.
    """

    pairs: Sequence[tuple[str, str]]
    duration_baseline: bool = False
    gallery: int = 6

    reads_tokens: ClassVar[bool] = True

    def evaluate(self, context: EvaluationContext) -> Iterator[Outcome | Missing]:
        """A result for each direction whose modalities the model has."""
        embedded, drawn = context.captioned, set[frozenset[str]]()
        lengths = None
        if self.duration_baseline:
            lengths = lengths_of(context.source, embedded.indices)
        for query, gallery in self.pairs:
            if not context.has(query, gallery):
                continue
            ends = frozenset((query, gallery))
            yield score_retrieval(
                embedded, query, gallery, context.is_trained(query, gallery),
                self.gallery, ends not in drawn, lengths, context.similarity,
            )  # fmt: skip
            drawn.add(ends)


@dataclass
class ComposedQuery:
    """Retrieval by a sum: the weighted embeddings of several modalities of a sample.

    Args:
        query: modality -> weight, two or more; a negative weight subtracts.
        gallery: the modality to find, not one of the query's.
        examples: queries drawn with their neighbours in the report.

    Raises:
        ValueError: if given fewer modalities, a weight of 0, or a gallery that the query holds.
    """

    query: Mapping[str, float]
    gallery: str
    examples: int = 6

    def __post_init__(self) -> None:
        if len(self.query) < 2 or 0 in self.query.values() or self.gallery in self.query:
            raise ValueError(
                "a composed query weighs two or more modalities, none by 0, and looks for another; "
                f"got {dict(self.query)} for {self.gallery}"
            )

    @property
    def name(self) -> str:
        """``image + 0.5 text - audio``."""
        words = []
        for modality, weight in self.query.items():
            sign = "-" if weight < 0 else "+"
            size = "" if abs(weight) == 1 else f"{abs(weight):g} "
            words.append(f"{sign} {size}{modality}")
        return " ".join(words).removeprefix("+ ")

    def evaluate(self, context: EvaluationContext) -> Iterator[Outcome | Missing]:
        """One direction: from the sum to the gallery.

        Raises:
            ValueError: if the terms of a sample cancel out.
        """
        if not context.has(*self.query, self.gallery):
            return
        trained = all(context.is_trained(part, self.gallery) for part in self.query)
        embedded = _compose(context.captioned, self)
        yield score_retrieval(
            embedded, self.name, self.gallery, trained, self.examples, matrix=False
        )


def _compose(embedded: Embedded, task: ComposedQuery) -> Embedded:
    """``embedded`` with one modality more, named by the task: the sum that it asks for."""
    terms = [(embedded.embeddings[name], weight) for name, weight in task.query.items()]
    items = torch.stack([embedded.items[name] for name in task.query], dim=1)
    return replace(
        embedded,
        embeddings={**embedded.embeddings, task.name: combine(terms)},
        items={**embedded.items, task.name: torch.unique(items, dim=0, return_inverse=True)[1]},
    )


def score_retrieval(
    embedded: Embedded,
    query: str,
    gallery: str,
    trained: bool,
    examples: int,
    matrix: bool,
    lengths: Tensor | None = None,
    similarity: Similarity = COSINE,
) -> RetrievalResult:
    """One direction: every distinct query among every distinct item.

    Under a process group every rank has to call; each scores its share.

    Args:
        embedded: the set.
        query: modality of the queries.
        gallery: modality of the gallery.
        trained: whether the two were trained together.
        examples: queries to show with their neighbours, evenly spaced through the set.
        matrix: whether to keep similarities for the report.
        lengths: ``[N, 2]`` float64, seconds of the sound and letters of the text, for a baseline.
        similarity: of the set's embeddings.

    Raises:
        ValueError: if given NaN, or if no query has a right answer.
    """
    groups = merge_groups(embedded.keys, embedded.items[query], embedded.items[gallery])
    rows, columns = (first_of_each(embedded.items[modality]) for modality in (query, gallery))
    sides = embedded.embeddings[query][rows], embedded.embeddings[gallery][columns]
    keys = groups[rows], groups[columns]
    places = embedded.indices[rows], embedded.indices[columns]
    compare = similarity.between(query, gallery)
    baseline = None
    if lengths is not None and "audio" in (query, gallery):
        asked, offered = by_duration(lengths, query == "audio")
        baseline = retrieval_by_scalar(asked[rows], offered[columns], *keys)
    return RetrievalResult(
        set=embedded.name,
        query=query,
        gallery=gallery,
        trained=trained,
        scores=retrieval(*sides, *keys, shared=True, compare=compare),
        baseline=baseline,
        examples=_examples(sides, keys, places, examples, compare),
        matrix=_matrix(embedded, query, gallery, groups, compare) if matrix else None,
    )


def _examples(
    sides: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    places: tuple[Tensor, Tensor],
    count: int,
    compare: Comparison,
) -> list[Example]:
    (queries, gallery), (query_keys, gallery_keys), (rows, columns) = sides, keys, places
    answerable = torch.isin(query_keys, gallery_keys).nonzero().flatten()
    chosen = answerable[evenly_spaced(len(answerable), count)]
    similarities, items = nearest(queries[chosen], gallery, NEIGHBOURS, compare=compare)
    examples = []
    for place, query in enumerate(chosen.tolist()):
        right = gallery_keys == query_keys[query]
        one = slice(query, query + 1)
        examples.append(
            Example(
                query=int(rows[query]),
                neighbours=[
                    (int(columns[item]), float(similarity), bool(right[item]))
                    for similarity, item in zip(similarities[place], items[place], strict=True)
                ],
                rank=retrieval(
                    queries[one], gallery, query_keys[one], gallery_keys, compare=compare
                ).median_rank,
            )
        )
    return examples


def _matrix(
    embedded: Embedded, query: str, gallery: str, groups: Tensor, compare: Comparison
) -> Tensor:
    shown = groups.argsort(stable=True)[evenly_spaced(len(groups), MATRIX_SIZE)]
    return compare.matrix(embedded.embeddings[query][shown], embedded.embeddings[gallery][shown])
