"""Probes on frozen embeddings: what they learn, how they choose, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from multimodal.evaluation.metrics.probe import (
    STRENGTHS,
    Samples,
    choose_strength,
    fit_linear,
    hold_out,
    probe,
)


def blobs(count: int, noise: float, seed: int, classes: int = 4) -> Samples:
    """Directions of unit norm around one centre per class."""
    centres = np.random.default_rng(0).standard_normal((classes, 12))
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    vectors = centres[labels] + noise * random.standard_normal((count, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Samples(vectors.astype(np.float32), labels)


def test_separable_classes_are_learned_by_all_three():
    found = probe(blobs(120, 0.2, 1), blobs(60, 0.2, 2), shots=(1, 4))
    assert found.linear.top1 == found.neighbours.top1 == 1.0
    assert [few.shots for few in found.few_shot] == [1, 4]
    assert found.few_shot[1].mean == 1.0
    assert (found.classes, found.train, found.test, found.chance) == (4, 120, 60, 0.25)


def test_labels_without_a_trace_in_the_embeddings_score_near_chance():
    random = np.random.default_rng(0)
    train = Samples(blobs(400, 0.2, 1).vectors, random.integers(0, 4, 400))
    test = Samples(blobs(400, 0.2, 2).vectors, random.integers(0, 4, 400))
    found = probe(train, test, shots=(1,))
    for score in (found.linear.top1, found.neighbours.top1, found.few_shot[0].mean):
        assert abs(score - 0.25) < 0.1


def test_more_shots_are_better_and_the_draws_differ():
    found = probe(blobs(400, 0.9, 1), blobs(400, 0.9, 2), draws=4)
    means = [few.mean for few in found.few_shot]
    assert [few.shots for few in found.few_shot] == [1, 2, 4, 8, 16]
    assert means[0] < means[2] < means[4] <= found.linear.top1 + 0.02
    assert all(few.deviation > 0 for few in found.few_shot[:2])


def test_shots_that_a_class_cannot_give_are_left_out():
    full = blobs(80, 0.2, 1)
    few = full.take(np.flatnonzero((full.labels > 0) | (np.arange(80) < 20)))  # five of class 0
    assert [f.shots for f in probe(few, blobs(20, 0.2, 2), draws=1).few_shot] == [1, 2, 4]


def test_the_strength_is_the_best_on_validation_data():
    train, validation = blobs(30, 1.2, 1), blobs(400, 1.2, 2)
    scores = {
        s: LogisticRegression(C=1 / s, max_iter=300)
        .fit(train.vectors, train.labels)
        .score(validation.vectors, validation.labels)
        for s in STRENGTHS
    }
    assert len(set(scores.values())) > 1
    chosen = choose_strength(train, validation)
    assert scores[chosen] == max(scores.values())
    found = probe(train, blobs(100, 1.2, 3), validation, shots=())
    assert found.linear.strength == chosen
    said = fit_linear(train, chosen).score(blobs(100, 1.2, 3).vectors, blobs(100, 1.2, 3).labels)
    assert found.linear.top1 == said


def test_neighbours_vote():
    train, test = blobs(200, 0.9, 1), blobs(50, 0.9, 2)
    found = probe(train, test, shots=())
    near = NearestNeighbors(n_neighbors=20, metric="cosine").fit(train.vectors)
    places = near.kneighbors(test.vectors, return_distance=False)
    votes = np.array([np.bincount(train.labels[row], minlength=4).argmax() for row in places])
    assert found.neighbours.top1 == (votes == test.labels).mean()


def test_a_part_held_out_is_apart_and_holds_every_class():
    samples = blobs(50, 0.3, 1)
    stay, out = hold_out(samples, seed=0)
    rows = {tuple(row) for row in stay.vectors}
    assert len(stay) + len(out) == 50
    assert not rows & {tuple(row) for row in out.vectors}
    assert set(out.labels) == set(range(4))


def test_the_same_seed_gives_the_same_figures():
    train, test = blobs(100, 0.8, 1), blobs(100, 0.8, 2)
    one = probe(train, test, shots=(2,), draws=2, seed=3)
    assert one == probe(train, test, shots=(2,), draws=2, seed=3)
    assert one != probe(train, test, shots=(2,), draws=2, seed=4)


def test_rejects_impossible_settings():
    train, test = blobs(40, 0.2, 1), blobs(8, 0.2, 2)
    one = train.take(np.flatnonzero(train.labels == 0))
    with pytest.raises(ValueError, match=r"training has 1, without \[1, 2, 3\]"):
        probe(one, test)
    with pytest.raises(ValueError, match="one label each"):
        Samples(train.vectors, train.labels[:3])
    with pytest.raises(ValueError, match="NaN or infinity"):
        Samples(np.full((1, 2), np.nan, np.float32), np.zeros(1, np.int64))
