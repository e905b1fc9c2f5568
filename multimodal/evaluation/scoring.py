"""From the embeddings of one set to its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multimodal.evaluation.ground_truth import first_of_each, merge_groups
from multimodal.evaluation.results import Example, RetrievalResult, ZeroShotResult
from multimodal.evaluation.retrieval import Retrieval, nearest, retrieval, retrieval_by_scalar
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
        indices: ``[N]`` int64, the samples' places in their source.
        lengths: ``[N, 2]`` float64, seconds of the sound and letters of the text; None unless the
            duration baseline is asked for.
    """

    name: str
    embeddings: Mapping[str, Tensor]
    items: Mapping[str, Tensor]
    keys: Tensor
    indices: Tensor
    lengths: Tensor | None = None


def score_retrieval(
    embedded: Embedded, query: str, gallery: str, trained: bool, examples: int, matrix: bool
) -> RetrievalResult:
    """One direction: every distinct query among every distinct item.

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
        scores=retrieval(*sides, *keys),
        baseline=_by_duration(embedded, query, gallery, rows, columns, keys),
        examples=_examples(
            *sides, *keys, embedded.indices[rows], embedded.indices[columns], examples
        ),
        matrix=_matrix(embedded, query, gallery, groups) if matrix else None,
    )


def score_zero_shot(
    embedded: Embedded,
    modality: str,
    label: str,
    labels: Sequence[str],
    prompts: Sequence[str],
    prompt_embeddings: Mapping[str, Tensor],
    trained: bool,
) -> ZeroShotResult:
    """Classification of ``modality`` by prompts.

    Args:
        embedded: the set.
        modality: what is classified.
        label: metadata key that ``labels`` come from.
        labels: N class names.
        prompts: the templates, for the report.
        prompt_embeddings: class -> ``[P, D]``, embeddings of its prompts.
        trained: whether the modality was trained together with text.

    Raises:
        ValueError: On NaN.
    """
    classes = list(prompt_embeddings)
    places = {name: place for place, name in enumerate(classes)}
    scores = zero_shot(
        embedded.embeddings[modality],
        class_embeddings(list(prompt_embeddings.values())),
        torch.tensor([places[name] for name in labels]),
    )
    return ZeroShotResult(
        embedded.name, modality, label, trained, scores, classes, prompts=list(prompts)
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
