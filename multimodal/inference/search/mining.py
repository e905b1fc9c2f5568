"""Hard negatives of every sample by a model's embeddings, with the false ones kept out.

Positive-aware mining as in NV-Retriever (Moreira et al. 2024, arXiv:2407.15831, Section 3): what is
as similar to the anchor as its own positive is probably a positive that nobody marked, so a bound
that moves with the positive's similarity decides what may be a negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from multimodal.inference.search.compressed import build

Vectors = NDArray[np.float32]
Keys = NDArray[np.int64]
_ENTRIES = 1 << 24  # similarities held at a time
_SPARE = 16  # rows asked of an approximate index beyond those wanted, for those that are excluded


@dataclass(frozen=True)
class MiningOptions:
    """Which of the nearest are taken.

    Args:
        count: negatives of each sample, at most.
        first: rank of the first that is looked at, from 0: the nearest ones are skipped.
        last: rank behind the last that is looked at.
        share: of the positive's similarity; a negative has at most that much (NV-Retriever's
            TopK-PercPos, there 0.95). None for no such bound.
        margin: below the positive's similarity that a negative has to be (TopK-MarginPos, there
            0.05); None for no such bound.
        kind: ``exact`` compares with all; ``approximate`` walks a graph (needs the extra `search`).

    Raises:
        ValueError: if a value is out of its range.
    """

    count: int = 4
    first: int = 0
    last: int = 100
    share: float | None = 0.95
    margin: float | None = None
    kind: Literal["exact", "approximate"] = "exact"

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.first < self.last:
            raise ValueError(
                f"mining: expected count >= 1 and 0 <= first < last, got count={self.count}, "
                f"first={self.first}, last={self.last}"
            )
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"mining: share must be in (0, 1], or null; got {self.share}")
        if self.margin is not None and not self.margin >= 0:
            raise ValueError(f"mining: margin must be at least 0, or null; got {self.margin}")

    def bound(self, positives: Vectors) -> Vectors:
        """The greatest similarity that a negative of each anchor may have ``[A]``."""
        bound = np.full_like(positives, np.inf)
        if self.share is not None:  # of a negative similarity, "95 %" is what lies 5 % below it
            bound = np.minimum(bound, positives - (1 - self.share) * np.abs(positives))
        if self.margin is not None:
            bound = np.minimum(bound, positives - self.margin)
        return bound


@dataclass(frozen=True)
class Mined:
    """What was found.

    Attributes:
        negatives: ``[N, K]`` int32 rows, the most similar first; -1 where there are fewer.
        similarities: ``[N, K]`` float32; 0 there.
        positives: ``[N]`` float32, of each anchor and its own candidate.
    """

    negatives: NDArray[np.int32]
    similarities: Vectors
    positives: Vectors


def mine(
    anchors: Vectors, candidates: Vectors, keys: Keys, items: Keys, options: MiningOptions
) -> Mined:
    """The hard negatives of N samples among their N candidates.

    Of each anchor's candidates, ranked by similarity without those that are right answers, the
    ranks from ``first`` to ``last`` are looked at, those above the bound are left out, and the
    first ``count`` of the rest are taken.

    Args:
        anchors: ``[N, D]``, of unit norm.
        candidates: ``[N, D]``, row i is the positive of anchor i.
        keys: ``[N]``, equal for samples that are right answers of each other.
        items: ``[N]``, equal for candidates of equal content, which are right answers too.
        options: see there.
    """
    count, width = len(anchors), options.count
    negatives = np.full((count, width), -1, np.int32)
    similarities = np.zeros((count, width), np.float32)
    positives = np.einsum("nd,nd->n", anchors, candidates).astype(np.float32)
    bounds = options.bound(positives)
    search = _Exact(candidates) if options.kind == "exact" else _Approximate(candidates, options)
    step = max(1, _ENTRIES // max(1, count))
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        places, values = search(anchors[rows], keys[rows], items[rows], keys, items, options.last)
        for place, row in enumerate(range(rows.start, rows.stop)):
            ranked = slice(options.first, options.last)
            theirs, similar = places[place][ranked], values[place][ranked]
            taken = np.flatnonzero((theirs >= 0) & (similar <= bounds[row]))[:width]
            negatives[row, : len(taken)] = theirs[taken]
            similarities[row, : len(taken)] = similar[taken]
    return Mined(negatives, similarities, positives)


class _Exact:
    """All candidates, ranked; ties go to the lower row."""

    def __init__(self, candidates: Vectors) -> None:
        self._columns = candidates.T

    def __call__(
        self, anchors: Vectors, own_keys: Keys, own_items: Keys, keys: Keys, items: Keys, last: int
    ) -> tuple[Any, Any]:
        similar = anchors @ self._columns
        right = (own_keys[:, None] == keys) | (own_items[:, None] == items)
        similar[right] = -np.inf
        last = min(last, similar.shape[1])
        order = np.argsort(-similar, axis=1, kind="stable")[:, :last]
        values = np.take_along_axis(similar, order, axis=1)
        return np.where(np.isfinite(values), order, -1), values


class _Approximate:
    """The nearest by a graph; right answers are taken out of what it returns."""

    def __init__(self, candidates: Vectors, options: MiningOptions) -> None:
        self._index = build(candidates, "approximate").index
        self._index.hnsw.efSearch = max(self._index.hnsw.efSearch, 2 * options.last)
        self._size = len(candidates)

    def __call__(
        self, anchors: Vectors, own_keys: Keys, own_items: Keys, keys: Keys, items: Keys, last: int
    ) -> tuple[Any, Any]:
        wanted = min(self._size, last + _SPARE)
        values, places = self._index.search(np.ascontiguousarray(anchors, np.float32), wanted)
        ranked, similar = [], []
        for row, (theirs, scores) in enumerate(zip(places, values, strict=True)):
            right = (keys[theirs] == own_keys[row]) | (items[theirs] == own_items[row])
            left = ~right & (theirs >= 0)
            ranked.append(theirs[left][:last])
            similar.append(scores[left][:last])
        return ranked, similar
