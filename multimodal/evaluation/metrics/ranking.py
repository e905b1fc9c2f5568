"""Ranks of right answers, with ties scored by their expectation.

Tied items may be in any order; every metric is the mean over all of them (McSherry and Najork,
"Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores",
ECIR 2008). Nothing is sorted but the right answers: each is ranked by counting what scores above
it, so the memory is that of the scores, and a figure depends on no order of the items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multimodal.core import distributed

CELLS = 2**22  # scores held at once
_COUNTED = 8  # right answers per query up to which counting beats sorting

Rows = Callable[[int, int], Tensor]  # rows start to stop of a matrix of scores [Q, G]


@dataclass(frozen=True, slots=True)
class Answers:
    """The right answers of every query, as places in the gallery.

    Attributes:
        places: ``[A]`` int64, the answers of all queries, one query after the other.
        first: ``[Q]`` int64, where in ``places`` a query's answers begin.
        counts: ``[Q]`` int64, how many it has.
    """

    places: Tensor
    first: Tensor
    counts: Tensor

    @classmethod
    def by_key(cls, query_keys: Tensor, gallery_keys: Tensor) -> Answers:
        """An item is right for the queries of the same key."""
        keys, places = gallery_keys.sort(stable=True)
        first = torch.searchsorted(keys, query_keys)
        return cls(places, first, torch.searchsorted(keys, query_keys, right=True) - first)

    @classmethod
    def by_table(cls, right_QG: Tensor) -> Answers:
        """From ``[Q, G]`` bool."""
        counts = right_QG.sum(dim=1)
        return cls(right_QG.nonzero()[:, 1], counts.cumsum(dim=0) - counts, counts)


@dataclass(frozen=True, slots=True)
class Ranked:
    """Figures of every query that has a right answer, in the order of the queries; float64.

    Attributes:
        queries: ``[q]`` int64, which queries these are.
        hits: ``[K, q]``, probability that a right answer is among the first k, per depth.
        rank: ``[q]``, expected place of the first right answer, from 1.
        precision: ``[q]``, expected average precision.
        positives: ``[q]``, number of right answers.
    """

    queries: Tensor
    hits: Tensor
    rank: Tensor
    precision: Tensor
    positives: Tensor


def rank(
    rows: Rows,
    answers: Answers,
    n_gallery: int,
    ks: Sequence[int],
    chunk_size: int | None = None,
    shared: bool = False,
) -> Ranked:
    """Ranks every query's right answers among ``n_gallery`` items, the highest score first.

    Args:
        rows: scores, finite, of queries ``start`` to ``stop``: ``[stop - start, G]``.
        answers: of all queries.
        n_gallery: G.
        ks: depths, at least 1.
        chunk_size: queries compared at once; None bounds the memory. It changes no figure.
        shared: each rank of the process group scores its share of the queries and all get all
            figures; every rank has to call with equal arguments.
    """
    n_queries = len(answers.counts)
    ranks, me = (distributed.world_size(), distributed.rank()) if shared else (1, 0)
    share = range(n_queries * me // ranks, n_queries * (me + 1) // ranks)
    queries = answers.counts.nonzero().flatten()
    if not len(queries):
        nothing = torch.zeros(0, dtype=torch.float64)
        return Ranked(queries, nothing.expand(len(ks), 0), nothing, nothing, nothing)
    widest = int(answers.counts.max())
    parts = [
        _rank_chunk(rows(start, stop), answers, start, widest, ks)
        for start, stop in chunks(share, n_gallery, chunk_size)
    ]
    figures = torch.cat(parts) if parts else torch.zeros(0, len(ks) + 2, dtype=torch.float64)
    if shared:
        device = figures.device
        every = distributed.all_gather_object(figures.cpu())
        figures = torch.cat(every).to(device)
    hits, first, precision = figures[:, :-2].T, figures[:, -2], figures[:, -1]
    return Ranked(queries, hits, first, precision, answers.counts[queries].double())


def chunks(share: range, n_gallery: int, chunk_size: int | None) -> Iterator[tuple[int, int]]:
    """(start, stop) pieces of ``share`` of at most ``chunk_size`` rows, or of `CELLS` scores."""
    size = chunk_size or max(1, CELLS // max(n_gallery, 1))
    for start in range(share.start, share.stop, size):
        yield start, min(start + size, share.stop)


def _rank_chunk(
    scores_qG: Tensor, answers: Answers, start: int, widest: int, ks: Sequence[int]
) -> Tensor:
    """``[q, K + 2]`` of the answerable queries: hits at each depth, first rank, precision."""
    stop = start + len(scores_qG)
    counts = answers.counts[start:stop]
    answerable = counts > 0
    if not answerable.all():
        scores_qG, counts = scores_qG[answerable], counts[answerable]
    first = answers.first[start:stop][answerable]
    n_gallery = scores_qG.shape[1]
    # Padded to the widest of all queries, so that no sum depends on the neighbours in a chunk.
    places = torch.arange(widest, device=scores_qG.device).expand(len(counts), -1)
    valid = places < counts[:, None]
    places = answers.places[(first[:, None] + places).clamp_max(len(answers.places) - 1)]
    right = scores_qG.gather(1, places).masked_fill(~valid, -torch.inf)
    right = right.sort(dim=1, descending=True).values

    ahead, level = _above(scores_qG, right)
    right_ahead, right_level = (x.double() for x in _above(right, right))
    ahead_d, level_d = ahead.double(), level.double()
    # The j-th place of a block of `level` tied items (from 0) is preceded by `ahead + j` items, of
    # which `right_ahead + j (right_level - 1) / (level - 1)` are expected to be right.
    within = (right_level - 1) / (level_d - 1).clamp_min(1)
    harmonic = torch.cumsum(
        1 / torch.arange(1, n_gallery + 1, dtype=torch.float64, device=right.device), dim=0
    )
    harmonic = torch.cat([harmonic.new_zeros(1), harmonic])
    places_sum = harmonic[(ahead + level).clamp_max(n_gallery)] - harmonic[ahead]
    tied = within + (right_ahead + 1 - within * (ahead_d + 1)) * places_sum / level_d
    gain = torch.where(level == 1, (right_ahead + 1) / (ahead_d + 1), tied)
    precision = gain.masked_fill(~valid, 0).cumsum(dim=1)[:, -1] / counts

    above, among, right_among = ahead_d[:, 0], level_d[:, 0], right_level[:, 0]
    hits = [hit_probability(right_among, among, k - above) for k in ks]
    expected = above + (among + 1) / (right_among + 1)
    return torch.stack([*hits, expected, precision], dim=1)


def _above(scores: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    """Per row and mark: how many scores are above it, and how many are level with it."""
    if marks.shape[1] <= _COUNTED:
        above = torch.stack([(scores > mark[:, None]).sum(dim=1) for mark in marks.T], dim=1)
        level = torch.stack([(scores == mark[:, None]).sum(dim=1) for mark in marks.T], dim=1)
        return above, level
    rising = scores.sort(dim=1).values
    marks = marks.contiguous()
    up_to = torch.searchsorted(rising, marks, right=True)
    return scores.shape[1] - up_to, up_to - torch.searchsorted(rising, marks)


def hit_probability(right: Tensor, total: Tensor | int, draws: Tensor | int) -> Tensor:
    """Probability that ``draws`` of ``total`` items, without replacement, hold a right one."""
    draws = torch.as_tensor(draws, device=right.device)
    total = torch.as_tensor(total, device=right.device)
    miss = torch.ones_like(right)
    for drawn in range(int(draws.max().clamp_min(0))):
        left = (total - drawn).clamp_min(1)
        share = (total - right - drawn).clamp_min(0) / left
        miss = torch.where(drawn < draws, miss * share, miss)
    return 1 - miss


def chance_precision(positives: Tensor, n_gallery: int) -> Tensor:
    """Expected average precision of a random order: place i is right with probability p / G."""
    harmonic = (1 / torch.arange(1, n_gallery + 1, dtype=torch.float64)).sum().item()
    others = (positives - 1) / max(n_gallery - 1, 1)
    return (harmonic + others * (n_gallery - harmonic)) / n_gallery
