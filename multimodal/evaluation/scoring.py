"""From the embeddings of one set to its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from multimodal.evaluation import diagnostics
from multimodal.evaluation.arithmetic import combine
from multimodal.evaluation.embedding_map import lay_out
from multimodal.evaluation.ground_truth import first_of_each, merge_groups
from multimodal.evaluation.results import (
    Diagnostics,
    EmbeddingMap,
    Example,
    RetrievalResult,
    ZeroShotResult,
)
from multimodal.evaluation.retrieval import Retrieval, nearest, retrieval, retrieval_by_scalar
from multimodal.evaluation.sets import ComposedQuery, ZeroShotTask
from multimodal.evaluation.zero_shot import class_embeddings, zero_shot

NEIGHBOURS = 5
MATRIX_SIZE = 64


@dataclass(frozen=True, slots=True)
class Embedded:
    """One evaluation set, embedded.

    Attributes:
        name: the set's.
        embeddings: modality -> ``[N, D]``, of unit norm.
        items: modality -> ``[N]`` int64, equal for samples whose inputs are equal.
        keys: ``[N]`` int64, equal for samples that are right answers of each other.
        indices: ``[N]`` int64, the samples' places in their source, and its length times the number
            of the caption added where all captions are kept.
        lengths: ``[N, 2]`` float64, seconds of the sound and letters of the text; None unless the
            duration baseline is asked for.
    """

    name: str
    embeddings: Mapping[str, Tensor]
    items: Mapping[str, Tensor]
    keys: Tensor
    indices: Tensor
    lengths: Tensor | None = None


def compose(embedded: Embedded, task: ComposedQuery) -> Embedded:
    """``embedded`` with one modality more, named by the task: the sum that it asks for.

    Raises:
        ValueError: If the terms of a sample cancel out.
    """
    terms = [(embedded.embeddings[name], weight) for name, weight in task.query.items()]
    items = torch.stack([embedded.items[name] for name in task.query], dim=1)
    return replace(
        embedded,
        embeddings={**embedded.embeddings, task.name: combine(terms)},
        items={**embedded.items, task.name: torch.unique(items, dim=0, return_inverse=True)[1]},
    )


def score_retrieval(
    embedded: Embedded, query: str, gallery: str, trained: bool, examples: int, matrix: bool
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

    Raises:
        ValueError: On NaN, or if no query has a right answer.
    """
    groups = merge_groups(embedded.keys, embedded.items[query], embedded.items[gallery])
    rows, columns = (first_of_each(embedded.items[modality]) for modality in (query, gallery))
    sides = embedded.embeddings[query][rows], embedded.embeddings[gallery][columns]
    keys = groups[rows], groups[columns]
    return RetrievalResult(
        set=embedded.name,
        query=query,
        gallery=gallery,
        trained=trained,
        scores=retrieval(*sides, *keys, shared=True),
        baseline=_by_duration(embedded, query, gallery, rows, columns, keys),
        examples=_examples(
            *sides, *keys, embedded.indices[rows], embedded.indices[columns], examples
        ),
        matrix=_matrix(embedded, query, gallery, groups) if matrix else None,
    )


def score_zero_shot(
    embedded: Embedded,
    task: ZeroShotTask,
    labels: Sequence[Sequence[str]],
    prompt_embeddings: Mapping[str, Tensor],
    trained: bool,
) -> ZeroShotResult:
    """Classification of ``task.modality`` by prompts.

    Under a process group every rank has to call; each scores its share.

    Args:
        embedded: the set.
        task: what is asked.
        labels: of N samples, one class name each, or several.
        prompt_embeddings: class -> ``[P, D]``, embeddings of its prompts.
        trained: whether the modality was trained together with text.

    Raises:
        ValueError: On NaN.
    """
    classes = list(prompt_embeddings)
    places = {name: place for place, name in enumerate(classes)}
    if all(len(names) == 1 for names in labels):
        targets = torch.tensor([places[name] for [name] in labels])
    else:
        targets = torch.zeros(len(labels), len(classes), dtype=torch.bool)
        for row, names in zip(targets, labels, strict=True):
            row[[places[name] for name in names]] = True
    scores = zero_shot(
        embedded.embeddings[task.modality],
        class_embeddings(list(prompt_embeddings.values())),
        targets,
        shared=True,
    )
    return ZeroShotResult(
        embedded.name, task.modality, task.label, trained, scores, classes, list(task.prompts)
    )


def diagnose(embedded: Embedded, temperatures: Mapping[frozenset[str], float]) -> Diagnostics:
    """Alignment, uniformity, gap and effective rank of a set's embeddings.

    Args:
        embedded: the set.
        temperatures: of the pairs that were trained.
    """
    space = {
        name: diagnostics.SpaceDiagnostics(
            diagnostics.uniformity(vectors), diagnostics.effective_rank(vectors)
        )
        for name, vectors in embedded.embeddings.items()
    }
    pairs = {
        (a, b): diagnostics.PairDiagnostics(
            diagnostics.alignment(embedded.embeddings[a], embedded.embeddings[b]),
            diagnostics.modality_gap(embedded.embeddings[a], embedded.embeddings[b]),
            temperatures.get(frozenset((a, b))),
        )
        for a, b in combinations(embedded.embeddings, 2)
    }
    return Diagnostics(embedded.name, space, pairs)


def draw_map(
    embedded: Embedded, samples: int, labels: Sequence[str], captions: Sequence[str]
) -> EmbeddingMap:
    """A map of up to ``samples`` samples in all their modalities, one point each.

    Args:
        embedded: the set.
        samples: most to show; those of one label side by side among the evenly spaced.
        labels: N classes to colour by, or none.
        captions: N names.
    """
    order = (
        sorted(range(len(captions)), key=lambda i: labels[i]) if labels else range(len(captions))
    )
    chosen = [order[i] for i in _spaced(len(captions), samples).tolist()]
    modalities = list(embedded.embeddings)
    points = lay_out(torch.cat([embedded.embeddings[name][chosen] for name in modalities]))
    return EmbeddingMap(
        embedded.name,
        points,
        [name for name in modalities for _ in chosen],
        [labels[i] for _ in modalities for i in chosen] if labels else [],
        [captions[i] for _ in modalities for i in chosen],
    )


def _by_duration(
    embedded: Embedded,
    query: str,
    gallery: str,
    rows: Tensor,
    columns: Tensor,
    keys: tuple[Tensor, Tensor],
) -> Retrieval | None:
    """What a guess by length scores: how long would this name take to say?

    The line from letters to seconds is fitted to the set itself, in the baseline's favour.
    """
    if embedded.lengths is None or "audio" not in (query, gallery):
        return None
    seconds, letters = embedded.lengths.unbind(dim=1)
    design = torch.stack([torch.ones_like(letters), letters], dim=1)
    line = torch.linalg.lstsq(design, seconds[:, None], driver="gelsd").solution
    guessed = (design @ line).squeeze(1)
    asked, offered = (seconds, guessed) if query == "audio" else (guessed, seconds)
    return retrieval_by_scalar(asked[rows], offered[columns], *keys)


def _examples(
    queries: Tensor,
    gallery: Tensor,
    query_keys: Tensor,
    gallery_keys: Tensor,
    rows: Tensor,
    columns: Tensor,
    count: int,
) -> list[Example]:
    answerable = torch.isin(query_keys, gallery_keys).nonzero().flatten()
    chosen = answerable[_spaced(len(answerable), count)]
    similarities, found = nearest(queries[chosen], gallery, NEIGHBOURS)
    examples = []
    for place, query in enumerate(chosen.tolist()):
        right = gallery_keys == query_keys[query]
        one = slice(query, query + 1)
        examples.append(
            Example(
                query=int(rows[query]),
                neighbours=[
                    (int(columns[item]), float(similarity), bool(right[item]))
                    for similarity, item in zip(similarities[place], found[place], strict=True)
                ],
                rank=retrieval(queries[one], gallery, query_keys[one], gallery_keys).median_rank,
            )
        )
    return examples


def _matrix(embedded: Embedded, query: str, gallery: str, groups: Tensor) -> Tensor:
    shown = groups.argsort(stable=True)[_spaced(len(groups), MATRIX_SIZE)]
    return embedded.embeddings[query][shown] @ embedded.embeddings[gallery][shown].T


def _spaced(total: int, count: int) -> Tensor:
    """Up to ``count`` indices, evenly spaced in ``[0, total)``."""
    count = min(count, total)
    return torch.arange(count) * total // max(count, 1)
