"""Retrieval between two sets of embeddings: recall at k, median rank, mean average precision.

A gallery item is right for a query when their keys are equal, so one query may have several
right answers and one item may answer several queries (many-to-many). A query is found at k when
at least one right answer is among the first k, as COCO and Flickr30k are scored.

Ties are scored by their expectation over all orders of the tied items (McSherry and Najork,
"Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores",
ECIR 2008): a model that embeds everything at one point scores exactly the chance level, and no
figure depends on the order of the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CELLS = 2**22  # similarities held at once, about 100 bytes each while a chunk is scored

Rows = Callable[[int, int], Tensor]


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
        unanswerable: queries left out because the gallery holds no right answer.
    """

    recall: dict[int, float]
    median_rank: float
    mean_average_precision: float
    chance_recall: dict[int, float]
    chance_mean_average_precision: float
    queries: int
    gallery: int
    unanswerable: int = 0


def retrieval(
    queries: Tensor,
    gallery: Tensor,
    query_keys: Tensor,
    gallery_keys: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int | None = None,
) -> Retrieval:
    """Scores how well ``queries`` find their right answers in ``gallery`` by inner product.

    Args:
        queries: ``[Q, D]`` embeddings, of unit norm where cosines are meant.
        gallery: ``[G, D]`` embeddings.
        query_keys: ``[Q]`` integers.
        gallery_keys: ``[G]`` integers; an item is right for the queries of the same key.
        ks: depths at which recall is taken.
        chunk_size: queries compared at once; None bounds the memory. It changes no figure.

    Raises:
        ValueError: On shapes that do not fit, NaN or infinity, or no query with a right answer.
    """
    rows = similarity_rows(queries, gallery)
    return _score(rows, query_keys, gallery_keys, len(queries), len(gallery), ks, chunk_size)


def retrieval_by_scalar(
    query_values: Tensor,
    gallery_values: Tensor,
    query_keys: Tensor,
    gallery_keys: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int | None = None,
) -> Retrieval:
    """Scores retrieval by the nearest value of one number per item, a baseline for shortcuts.

    Spoken names, for one, are partly told apart by their duration alone: what a model scores on
    them means something only beside this.

    Args:
        query_values: ``[Q]`` numbers.
        gallery_values: ``[G]`` numbers, the nearest ranks first.
        query_keys: as in :func:`retrieval`.
        gallery_keys: as in :func:`retrieval`.
        ks: as in :func:`retrieval`.
        chunk_size: as in :func:`retrieval`.

    Raises:
        ValueError: As :func:`retrieval`.
    """
    for name, values in (("query_values", query_values), ("gallery_values", gallery_values)):
        if values.ndim != 1:
            raise ValueError(f"{name} must be [N], one number per item; got {list(values.shape)}")
        _refuse_non_finite(name, values)

    def rows(start: int, stop: int) -> Tensor:
        return -(query_values[start:stop, None].double() - gallery_values.double()).abs()

    n_queries, n_gallery = len(query_values), len(gallery_values)
    return _score(rows, query_keys, gallery_keys, n_queries, n_gallery, ks, chunk_size)


def nearest(
    queries: Tensor, gallery: Tensor, k: int, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest gallery items of every query, ties by the lower index.

    Args:
        queries: ``[Q, D]`` embeddings.
        gallery: ``[G, D]`` embeddings.
        k: neighbours wanted; all of the gallery where it holds fewer.
        chunk_size: queries compared at once; None bounds the memory.

    Returns:
        Similarities ``[Q, min(k, G)]`` float32, falling, and gallery indices of that shape, int64.

    Raises:
        ValueError: On shapes that do not fit, NaN or infinity.
    """
    rows = similarity_rows(queries, gallery)
    scores, indices = [], []
    for start, stop in _chunks(len(queries), len(gallery), chunk_size):
        ordered, order = torch.sort(rows(start, stop), dim=1, descending=True, stable=True)
        scores.append(ordered[:, :k].clone())
        indices.append(order[:, :k].clone())
    return torch.cat(scores), torch.cat(indices)


def similarity_rows(queries: Tensor, gallery: Tensor) -> Rows:
    """A function that returns rows ``start`` to ``stop`` of the similarity matrix.

    The products are summed in float64 and rounded to float32. So equal vectors tie exactly,
    however many rows are multiplied at once: the order of a float32 sum differs with the shape
    of the product, and would break ties at random.

    Raises:
        ValueError: On shapes that do not fit, NaN or infinity.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            "expected queries [Q, D] and gallery [G, D] of one dimension D; "
            f"got {list(queries.shape)} and {list(gallery.shape)}"
        )
    _refuse_non_finite("queries", queries)
    _refuse_non_finite("gallery", gallery)
    columns_DG = gallery.double().T

    def rows(start: int, stop: int) -> Tensor:
        return (queries[start:stop].double() @ columns_DG).float()

    return rows


def _score(
    rows: Rows,
    query_keys: Tensor,
    gallery_keys: Tensor,
    n_queries: int,
    n_gallery: int,
    ks: Sequence[int],
    chunk_size: int | None,
) -> Retrieval:
    if query_keys.shape != (n_queries,) or gallery_keys.shape != (n_gallery,):
        raise ValueError(
            f"expected one key per item, [{n_queries}] for the queries and [{n_gallery}] for the "
            f"gallery; got {list(query_keys.shape)} and {list(gallery_keys.shape)}"
        )
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be depths of at least 1; got {list(ks)}")
    parts = [
        _score_chunk(rows(start, stop), query_keys[start:stop, None] == gallery_keys, ks)
        for start, stop in _chunks(n_queries, n_gallery, chunk_size)
    ]
    if not any(len(part.rank) for part in parts):
        raise ValueError(
            f"none of {n_queries} queries has a right answer among {n_gallery} gallery items: "
            "their keys share no value"
        )
    hits, rank, precision, positives = (
        torch.cat([getattr(part, name) for part in parts], dim=-1) for name in _Chunk.__slots__
    )
    return Retrieval(
        recall=dict(zip(ks, hits.mean(dim=1).tolist(), strict=True)),
        median_rank=float(rank.quantile(0.5)),
        mean_average_precision=float(precision.mean()),
        chance_recall={k: _hit(positives, n_gallery, k).mean().item() for k in ks},
        chance_mean_average_precision=_chance_precision(positives, n_gallery).mean().item(),
        queries=len(rank),
        gallery=n_gallery,
        unanswerable=n_queries - len(rank),
    )


@dataclass(slots=True)
class _Chunk:
    hits: Tensor  # [K, Q], expected, per depth
    rank: Tensor  # [Q], expected, of the first right answer
    precision: Tensor  # [Q], expected average precision
    positives: Tensor  # [Q], right answers in the gallery


def _score_chunk(similarities_QG: Tensor, positives_QG: Tensor, ks: Sequence[int]) -> _Chunk:
    answerable = positives_QG.any(dim=1)
    similarities_QG, positives_QG = similarities_QG[answerable], positives_QG[answerable]
    n_queries, n_gallery = similarities_QG.shape
    if n_queries == 0:
        empty = torch.zeros(0, dtype=torch.float64, device=similarities_QG.device)
        return _Chunk(empty.expand(len(ks), 0), empty, empty, empty)

    ordered, order = torch.sort(similarities_QG, dim=1, descending=True)
    right = positives_QG.gather(1, order)
    # Every position belongs to a block of tied items, [first, last].
    position = torch.arange(n_gallery, device=ordered.device).expand(n_queries, -1)
    changes = ordered[:, 1:] != ordered[:, :-1]
    edge = changes.new_ones(n_queries, 1)
    starts, ends = torch.cat([edge, changes], dim=1), torch.cat([changes, edge], dim=1)
    first = torch.where(starts, position, 0).cummax(dim=1).values
    last = torch.where(ends, position, n_gallery).flip(1).cummin(dim=1).values.flip(1)
    size = (last - first + 1).double()
    up_to = right.cumsum(dim=1)  # right answers at this position and above
    above = torch.where(first > 0, up_to.gather(1, (first - 1).clamp_min(0)), 0).double()
    within = up_to.gather(1, last).double() - above
    positives = up_to[:, -1].double()

    # The j-th place of a block (from 0) holds a right answer with probability within / size; then
    # j (within - 1) / (size - 1) of the places before it in the block are expected to hold one.
    before = (position - first) * (within - 1) / (size - 1).clamp_min(1)
    gain = within / size * (above + 1 + before) / (position + 1)
    precision = gain.sum(dim=1) / positives

    best = right.int().argmax(dim=1, keepdim=True)  # in the block of the best right answer
    ahead, tied, right_tied = (
        values.gather(1, best).squeeze(1) for values in (first.double(), size, within)
    )
    hits = torch.stack([_hit(right_tied, tied, k - ahead) for k in ks])
    return _Chunk(hits, ahead + (tied + 1) / (right_tied + 1), precision, positives)


def _hit(right: Tensor, total: Tensor | int, draws: Tensor | int) -> Tensor:
    """Probability that ``draws`` of ``total`` items, without replacement, hold a right one."""
    draws = torch.as_tensor(draws, device=right.device)
    total = torch.as_tensor(total, device=right.device)
    miss = torch.ones_like(right)
    for drawn in range(int(draws.max().clamp_min(0))):
        left = (total - drawn).clamp_min(1)
        share = (total - right - drawn).clamp_min(0) / left
        miss = torch.where(drawn < draws, miss * share, miss)
    return 1 - miss


def _chance_precision(positives: Tensor, n_gallery: int) -> Tensor:
    """Expected average precision of a random order: place i is right with probability p / G."""
    harmonic = (1 / torch.arange(1, n_gallery + 1, dtype=torch.float64)).sum().item()
    others = (positives - 1) / max(n_gallery - 1, 1)
    return (harmonic + others * (n_gallery - harmonic)) / n_gallery


def _chunks(n_queries: int, n_gallery: int, chunk_size: int | None) -> list[tuple[int, int]]:
    size = chunk_size or max(1, _CELLS // max(n_gallery, 1))
    return [(start, min(start + size, n_queries)) for start in range(0, max(n_queries, 1), size)]


def _refuse_non_finite(name: str, values: Tensor) -> None:
    bad = ~torch.isfinite(values)
    if bad.any():
        rows = bad.reshape(len(bad), -1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"{name} holds NaN or infinity in {len(rows)} of {len(values)} items "
            f"(the first: {rows[0]}); such scores cannot be ranked"
        )
