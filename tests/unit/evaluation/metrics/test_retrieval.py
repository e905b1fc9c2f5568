"""Retrieval scores against loops over every order of the ties, and against scikit-learn."""

from __future__ import annotations

import itertools
import statistics
from math import comb

import pytest
import torch
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from multimodal.evaluation.metrics.retrieval import nearest, retrieval, retrieval_by_scalar

KS = (1, 2, 5)


def orders(scores: list[float]) -> list[tuple[int, ...]]:
    """Every order of the items by falling score: all permutations within each tie."""
    levels = sorted(set(scores), reverse=True)
    blocks = [[i for i, score in enumerate(scores) if score == level] for level in levels]
    choices = itertools.product(*(itertools.permutations(block) for block in blocks))
    return [tuple(itertools.chain(*blocks)) for blocks in choices]


def brute_force(similarities, query_keys, gallery_keys):
    """Recall, median rank and mean average precision, averaged over every order of the ties."""
    hits, ranks, precisions = [], [], []
    for row, key in zip(similarities, query_keys, strict=True):
        if key not in gallery_keys:
            continue
        first, precision = [], []
        for order in orders(row):
            places = [p for p, item in enumerate(order, start=1) if gallery_keys[item] == key]
            first.append(places[0])
            precision.append(statistics.fmean(n / p for n, p in enumerate(places, start=1)))
        hits.append([statistics.fmean(rank <= k for rank in first) for k in KS])
        ranks.append(statistics.fmean(first))
        precisions.append(statistics.fmean(precision))
    recall = [statistics.fmean(column) for column in zip(*hits, strict=True)]
    return recall, statistics.median(ranks), statistics.fmean(precisions)


def quantised(rows: int, dim: int, generator: torch.Generator) -> torch.Tensor:
    """Vectors of few distinct values, so that similarities tie."""
    return torch.randint(-1, 2, (rows, dim), generator=generator).double()


@pytest.mark.parametrize("seed", range(12))
def test_equals_loops_over_every_order_of_ties(seed):
    generator = torch.Generator().manual_seed(seed)
    queries, gallery = quantised(9, 3, generator), quantised(7, 3, generator)
    query_keys = torch.randint(0, 4, (9,), generator=generator)
    gallery_keys = torch.randint(0, 4, (7,), generator=generator)
    similarities = (queries @ gallery.T).tolist()
    assert any(len(set(row)) < len(row) for row in similarities)
    recall, median_rank, precision = brute_force(
        similarities, query_keys.tolist(), gallery_keys.tolist()
    )
    scores = retrieval(queries, gallery, query_keys, gallery_keys, KS)
    assert list(scores.recall.values()) == pytest.approx(recall, abs=1e-12)
    assert scores.median_rank == pytest.approx(median_rank, abs=1e-12)
    assert scores.mean_average_precision == pytest.approx(precision, abs=1e-12)
    missing = sum(key not in gallery_keys.tolist() for key in query_keys.tolist())
    assert (scores.queries, scores.gallery, scores.unanswerable) == (9 - missing, 7, missing)


def test_equals_scikit_learn_where_nothing_ties():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(40, 8, dtype=torch.float64, generator=generator)
    gallery = torch.randn(30, 8, dtype=torch.float64, generator=generator)
    query_keys = torch.randint(0, 10, (40,), generator=generator)
    gallery_keys = torch.arange(30) % 10
    relevant = (query_keys[:, None] == gallery_keys).numpy()
    similarities = queries @ gallery.T
    scores = retrieval(queries, gallery, query_keys, gallery_keys)
    expected = statistics.fmean(
        average_precision_score(truth, row)
        for truth, row in zip(relevant, similarities.numpy(), strict=True)
    )
    assert scores.mean_average_precision == pytest.approx(expected, abs=1e-12)

    identity = torch.arange(30)
    scores = retrieval(queries[:30], gallery, identity, identity, (1, 5, 10))
    for k in (1, 5, 10):
        accuracy = top_k_accuracy_score(identity.numpy(), similarities[:30].numpy(), k=k)
        assert scores.recall[k] == pytest.approx(accuracy, abs=1e-12)


def test_chance_is_what_a_collapsed_model_scores_and_what_loops_count():
    query_keys, gallery_keys = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 0, 1, 2, 2])
    scores = retrieval(torch.ones(4, 5), torch.ones(6, 5), query_keys, gallery_keys, KS)
    assert scores.recall == pytest.approx(scores.chance_recall, abs=1e-12)
    assert scores.mean_average_precision == pytest.approx(
        scores.chance_mean_average_precision, abs=1e-12
    )
    positives = [3, 1, 2, 2]
    for k in KS:
        expected = statistics.fmean(1 - comb(6 - p, k) / comb(6, k) for p in positives)
        assert scores.chance_recall[k] == pytest.approx(expected, abs=1e-12)
    _, median_rank, precision = brute_force(
        [[0.0] * 6] * 4, query_keys.tolist(), gallery_keys.tolist()
    )
    assert scores.chance_mean_average_precision == pytest.approx(precision, abs=1e-12)
    assert scores.median_rank == pytest.approx(median_rank, abs=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 3, 64, None])
def test_chunk_size_changes_no_digit(chunk_size):
    generator = torch.Generator().manual_seed(3)
    base = torch.nn.functional.normalize(torch.randn(20, 48, generator=generator), dim=1)
    queries = base[torch.randint(0, 20, (70,), generator=generator)]
    gallery = base[torch.randint(0, 20, (50,), generator=generator)]  # repeated: exact ties
    query_keys = torch.randint(0, 6, (70,), generator=generator)
    gallery_keys = torch.randint(0, 6, (50,), generator=generator)
    whole = retrieval(queries, gallery, query_keys, gallery_keys, chunk_size=70)
    assert retrieval(queries, gallery, query_keys, gallery_keys, chunk_size=chunk_size) == whole
    scores, indices = nearest(queries, gallery, 7, chunk_size=70)
    other_scores, other_indices = nearest(queries, gallery, 7, chunk_size=chunk_size)
    assert torch.equal(scores, other_scores)
    assert torch.equal(indices, other_indices)


def test_order_of_the_samples_changes_no_digit():
    generator = torch.Generator().manual_seed(4)
    queries, gallery = quantised(30, 4, generator), quantised(25, 4, generator)
    query_keys = torch.randint(0, 5, (30,), generator=generator)
    gallery_keys = torch.randint(0, 5, (25,), generator=generator)
    scores = retrieval(queries, gallery, query_keys, gallery_keys)
    shuffle = torch.randperm(25, generator=generator)
    again = retrieval(queries, gallery[shuffle], query_keys, gallery_keys[shuffle])
    assert again.recall == pytest.approx(scores.recall, abs=1e-12)
    assert again.mean_average_precision == pytest.approx(scores.mean_average_precision, abs=1e-12)
    assert again.median_rank == scores.median_rank


def test_nearest_breaks_ties_by_the_lower_index():
    gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    scores, indices = nearest(torch.tensor([[1.0, 0.0]]), gallery, 9)
    assert indices.tolist() == [[1, 2, 3, 0]]
    assert scores.tolist() == [pytest.approx([1.0, 1.0, 0.6, 0.0])]


def test_nearest_of_no_query_is_empty():
    scores, indices = nearest(torch.ones(0, 3), torch.ones(5, 3), 2)
    assert scores.shape == indices.shape == (0, 2)


def test_scalar_baseline_ranks_by_distance():
    keys = torch.arange(3)
    scores = retrieval_by_scalar(
        torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.1, 8.0, 2.5]), keys, keys, (1, 2)
    )
    assert scores.recall == pytest.approx({1: 1 / 3, 2: 2 / 3})  # ranks 1, 3, 2
    assert scores.median_rank == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rejects_unrankable_scores(value):
    good, bad, keys = torch.ones(4, 2), torch.ones(4, 2), torch.arange(4)
    bad[2, 1] = value
    with pytest.raises(ValueError, match=r"queries holds NaN or infinity in 1 of 4.*first: 2"):
        retrieval(bad, good, keys, keys)
    with pytest.raises(ValueError, match="gallery holds NaN"):
        nearest(good, bad, 1)
    with pytest.raises(ValueError, match="gallery_values holds NaN"):
        retrieval_by_scalar(good[:, 0], bad[:, 1], keys, keys)


def test_refuses_queries_without_a_right_answer_and_wrong_shapes():
    vectors, keys = torch.ones(4, 2), torch.arange(4)
    with pytest.raises(ValueError, match="none of 4 queries has a right answer"):
        retrieval(vectors, vectors, keys, keys + 10)
    with pytest.raises(ValueError, match="none of 0 queries"):
        retrieval(vectors[:0], vectors, keys[:0], keys)
    with pytest.raises(ValueError, match="of one dimension D"):
        retrieval(vectors, torch.ones(4, 3), keys, keys)
    with pytest.raises(ValueError, match="one key per item"):
        retrieval(vectors, vectors, keys[:3], keys)
    with pytest.raises(ValueError, match="depths of at least 1"):
        retrieval(vectors, vectors, keys, keys, ks=(0, 5))
