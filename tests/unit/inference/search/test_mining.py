"""Mining against a plain loop, and the bound that keeps false negatives out."""

from __future__ import annotations

import numpy as np
import pytest

from multimodal.inference.search.mining import MiningOptions, mine


def vectors(seed: int, rows: int, dim: int = 8) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def by_loops(anchors, candidates, keys, items, options) -> list[list[int]]:
    found = []
    for row, anchor in enumerate(anchors):
        similar = [float(anchor @ candidate) for candidate in candidates]
        wrong = [
            other
            for other in range(len(candidates))
            if keys[other] != keys[row] and items[other] != items[row]
        ]
        ranked = sorted(wrong, key=lambda other: -similar[other])[options.first : options.last]
        positive = similar[row]
        kept = [
            other
            for other in ranked
            if (
                options.share is None
                or similar[other] <= positive - (1 - options.share) * abs(positive)
            )
            and (options.margin is None or similar[other] <= positive - options.margin)
        ]
        found.append(kept[: options.count])
    return found


@pytest.mark.parametrize(
    "options",
    [
        MiningOptions(),
        MiningOptions(count=3, first=2, last=9, share=None),
        MiningOptions(share=0.8),
        MiningOptions(share=None, margin=0.2),
        MiningOptions(count=200, last=200, share=None),
    ],
    ids=str,
)
def test_it_equals_a_loop(options, monkeypatch):
    monkeypatch.setattr("multimodal.inference.search.mining._ENTRIES", 7 * 40)
    anchors, noise = vectors(0, 40), vectors(1, 40)
    candidates = anchors + 0.7 * noise
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    keys = np.arange(40) // 2
    items = np.arange(40) % 13
    found = mine(anchors, candidates, keys, items, options)
    expected = by_loops(anchors, candidates, keys, items, options)
    assert [[row for row in rows if row >= 0] for rows in found.negatives.tolist()] == expected
    assert any(expected)
    for row, theirs in enumerate(expected):
        values = [float(anchors[row] @ candidates[other]) for other in theirs]
        np.testing.assert_allclose(found.similarities[row][: len(theirs)], values, atol=1e-6)
    diagonal = (anchors * candidates).sum(axis=1)
    np.testing.assert_allclose(found.positives, diagonal, atol=1e-6)


def test_the_approximate_index_finds_nearly_the_same():
    pytest.importorskip("faiss")
    anchors = vectors(0, 500)
    keys = np.arange(500) // 2
    exact, near = (
        mine(anchors, anchors, keys, np.arange(500), MiningOptions(last=20, kind=kind))
        for kind in ("exact", "approximate")
    )
    assert (exact.negatives == near.negatives).mean() > 0.95
    assert (near.negatives // 2 != np.arange(500)[:, None] // 2).all()


@pytest.mark.parametrize(
    "options", [{"count": 0}, {"first": 5, "last": 5}, {"share": 1.5}, {"margin": -0.1}]
)
def test_faulty_options(options):
    with pytest.raises(ValueError, match="mining: "):
        MiningOptions(**options)
