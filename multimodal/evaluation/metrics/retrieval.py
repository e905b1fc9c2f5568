"""Retrieval between two sets of embeddings: recall at k, median rank, mean average precision.

A gallery item is right for a query when their keys are equal, so one query may have several right
answers and one item may answer several queries (many-to-many). A query is a hit at k if at least
one right answer is among the first k, as COCO and Flickr30k are scored.

Ties are scored by their expectation over all orders of the tied items (`ranking`): a model that
embeds everything at one point scores exactly the chance level, and no figure depends on the order
of the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from multimodal.core.bootstrap import Interval, mean_interval
from multimodal.core.similarity.similarities import COSINE, Comparison
from multimodal.evaluation.metrics.ranking import (
    Answers,
    Ranked,
    Rows,
    chance_precision,
    chunks,
    hit_probability,
    rank,
)

INNER_PRODUCT = COSINE.between("query", "gallery")


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Scores of one direction; all are fractions of 1 except the ranks and the counts.

    Attributes:
        recall: k -> share of the queries with a right answer among the first k.
        median_rank: median over queries of the expected rank of the first right answer, from 1.
        mean_average_precision: mean over queries of the average precision.
        chance_recall: what a random order of the gallery scores in expectation, per k.
        chance_mean_average_precision: likewise for the mean average precision.
        queries: number of queries scored.
        gallery: number of items they were looked for in.
        ranked: the scores of every query.
        unanswerable: queries left out because the gallery holds no right answer.
    """

    recall: dict[int, float]
    median_rank: float
    mean_average_precision: float
    chance_recall: dict[int, float]
    chance_mean_average_precision: float
    queries: int
    gallery: int
    ranked: Ranked = field(compare=False, repr=False)
    unanswerable: int = 0

    def intervals(self) -> dict[str, Interval]:
        """95 % intervals over the queries (`bootstrap`), of ``r@K`` and ``map``."""
        recalls = {f"r@{k}": self.recall_interval(k) for k in self.recall}
        return {**recalls, "map": mean_interval(self.ranked.precision.cpu().numpy())}

    def recall_interval(self, k: int) -> Interval:
        """The 95 % interval of one recall."""
        return mean_interval(self.hits(k).numpy())

    def hits(self, k: int) -> Tensor:
        """``[queries]`` float64, each query's probability of a hit at ``k``."""
        return self.ranked.hits[list(self.recall).index(k)].cpu()


def retrieval(
    queries: Tensor,
    gallery: Tensor,
    query_keys: Tensor,
    gallery_keys: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int | None = None,
    shared: bool = False,
    compare: Comparison = INNER_PRODUCT,
) -> Retrieval:
    """Scores how well ``queries`` find their right answers in ``gallery``.

    Args:
        queries: ``[Q, D]`` embeddings, of unit norm where cosines are meant; or of tokens.
        gallery: ``[G, D]`` embeddings; or of tokens.
        query_keys: ``[Q]`` integers.
        gallery_keys: ``[G]`` integers; an item is right for the queries of the same key.
        ks: depths at which recall is taken.
        chunk_size: queries compared at once; None bounds the memory. It changes no figure.
        shared: each rank of the process group scores its share of the queries, and all get the
            figures of all, equal to those of one process; every rank calls with equal arguments.
        compare: queries with the gallery; by default the inner product.

    Raises:
        ValueError: if given shapes that do not fit, NaN or infinity, or no query with a right
            answer.
    """
    rows = similarity_rows(queries, gallery, compare)
    return _score(
        rows, query_keys, gallery_keys, len(queries), len(gallery), ks, chunk_size, shared
    )


def retrieval_by_scalar(
    query_values: Tensor,
    gallery_values: Tensor,
    query_keys: Tensor,
    gallery_keys: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int | None = None,
    shared: bool = False,
) -> Retrieval:
    """Scores retrieval by the nearest value of one number per item, a baseline for shortcuts.

    Spoken names, for one, can partly be distinguished by their duration alone: a model's scores on
    them are meaningful only beside this.

    Args:
        query_values: ``[Q]`` numbers.
        gallery_values: ``[G]`` numbers, the nearest ranks first.
        query_keys: as in `retrieval`.
        gallery_keys: as in `retrieval`.
        ks: as in `retrieval`.
        chunk_size: as in `retrieval`.
        shared: as in `retrieval`.

    Raises:
        ValueError: see `retrieval`.
    """
    for name, values in (("query_values", query_values), ("gallery_values", gallery_values)):
        if values.ndim != 1:
            raise ValueError(f"{name} must be [N], one number per item; got {list(values.shape)}")
        _refuse_non_finite(name, values)

    def rows(start: int, stop: int) -> Tensor:
        return -(query_values[start:stop, None].double() - gallery_values.double()).abs()

    n_queries, n_gallery = len(query_values), len(gallery_values)
    return _score(rows, query_keys, gallery_keys, n_queries, n_gallery, ks, chunk_size, shared)


def nearest(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    chunk_size: int | None = None,
    compare: Comparison = INNER_PRODUCT,
) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest gallery items of every query, ties by the lower index.

    Args:
        queries: ``[Q, D]`` embeddings.
        gallery: ``[G, D]`` embeddings.
        k: neighbours wanted; all of the gallery where it holds fewer.
        chunk_size: queries compared at once; None bounds the memory.
        compare: as in `retrieval`.

    Returns:
        Similarities ``[Q, min(k, G)]`` float32, falling, and gallery indices of that shape, int64.

    Raises:
        ValueError: if given shapes that do not fit, NaN or infinity.
    """
    rows = similarity_rows(queries, gallery, compare)
    scores, indices = [], []
    for start, stop in chunks(range(len(queries)), len(gallery), chunk_size):
        ordered, order = torch.sort(rows(start, stop), dim=1, descending=True, stable=True)
        scores.append(ordered[:, :k].clone())
        indices.append(order[:, :k].clone())
    if not scores:
        return torch.zeros(0, min(k, len(gallery))), torch.zeros(0, min(k, len(gallery))).long()
    return torch.cat(scores), torch.cat(indices)


def similarity_rows(queries: Tensor, gallery: Tensor, compare: Comparison = INNER_PRODUCT) -> Rows:
    """A function that returns rows ``start`` to ``stop`` of the similarity matrix.

    The products are summed in float64 and rounded to float32. So equal vectors tie exactly,
    however many rows are multiplied at once: the order of a float32 sum differs with the shape
    of the product, and would break ties at random.

    Raises:
        ValueError: if given shapes that do not fit, NaN or infinity.
    """
    shapes = queries.ndim, gallery.ndim
    if shapes not in ((2, 2), (3, 3)) or queries.shape[-1] != gallery.shape[-1]:
        raise ValueError(
            "expected queries [Q, D] and gallery [G, D] of one dimension D, or both of tokens; "
            f"got {list(queries.shape)} and {list(gallery.shape)}"
        )
    _refuse_non_finite("queries", queries)
    _refuse_non_finite("gallery", gallery)
    columns = gallery.double()

    def rows(start: int, stop: int) -> Tensor:
        return compare.matrix(queries[start:stop].double(), columns).float()

    return rows


def _score(
    rows: Rows,
    query_keys: Tensor,
    gallery_keys: Tensor,
    n_queries: int,
    n_gallery: int,
    ks: Sequence[int],
    chunk_size: int | None,
    shared: bool,
) -> Retrieval:
    if query_keys.shape != (n_queries,) or gallery_keys.shape != (n_gallery,):
        raise ValueError(
            f"expected one key per item, [{n_queries}] for the queries and [{n_gallery}] for the "
            f"gallery; got {list(query_keys.shape)} and {list(gallery_keys.shape)}"
        )
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be depths of at least 1; got {list(ks)}")
    answers = Answers.by_key(query_keys, gallery_keys)
    ranked = rank(rows, answers, n_gallery, ks, chunk_size, shared)
    if not len(ranked.queries):
        raise ValueError(
            f"none of {n_queries} queries has a right answer among {n_gallery} gallery items: "
            "their keys share no value"
        )
    positives = ranked.positives
    return Retrieval(
        recall=dict(zip(ks, ranked.hits.mean(dim=1).tolist(), strict=True)),
        median_rank=float(np.median(ranked.rank.cpu().numpy())),
        mean_average_precision=float(ranked.precision.mean()),
        chance_recall={k: hit_probability(positives, n_gallery, k).mean().item() for k in ks},
        chance_mean_average_precision=chance_precision(positives, n_gallery).mean().item(),
        queries=len(ranked.queries),
        gallery=n_gallery,
        ranked=ranked,
        unanswerable=n_queries - len(ranked.queries),
    )


def _refuse_non_finite(name: str, values: Tensor) -> None:
    bad = ~torch.isfinite(values)
    if bad.any():
        rows = bad.reshape(len(bad), -1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"{name} holds NaN or infinity in {len(rows)} of {len(values)} items "
            f"(the first: {rows[0]}); such scores cannot be ranked"
        )
