"""Arithmetic on embeddings and diagnostics of their space, against loops and known cases."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from torch.nn.functional import normalize

from multimodal.evaluation.metrics.diagnostics import (
    alignment,
    effective_rank,
    modality_gap,
    uniformity,
)
from multimodal.inference.combine import combine


def unit(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_terms_are_normalised_before_they_are_weighed():
    x, y = torch.tensor([20.0, 0.0]), torch.tensor([0.0, 0.1])
    torch.testing.assert_close(combine([(x, 1.0), (y, 1.0)]), torch.tensor([0.5**0.5, 0.5**0.5]))
    torch.testing.assert_close(combine([(x, 3.0), (y, -4.0)]), torch.tensor([0.6, -0.8]))


def test_rows_are_combined_one_by_one():
    a, b = unit(5, 3, 1), unit(5, 3, 2)
    expected = torch.stack([normalize(a[i] - 0.5 * b[i], dim=0) for i in range(5)])
    torch.testing.assert_close(combine([(a, 1.0), (b, -0.5)]), expected)


def test_nothing_left_is_rejected():
    a = unit(3, 4)
    with pytest.raises(ValueError, match="3 of the combined queries sum to zero"):
        combine([(a, 1.0), (2 * a, -1.0)])
    with pytest.raises(ValueError, match="no term"):
        combine([])
    with pytest.raises(ValueError, match="all of one shape"):
        combine([(a, 1.0), (a[:2], 1.0)])


def test_alignment_uniformity_and_gap_equal_loops():
    a, b = unit(9, 5, 1), unit(9, 5, 2)
    squares = [float((x - y).square().sum()) for x, y in zip(a, b, strict=True)]
    assert alignment(a, b) == pytest.approx(statistics.fmean(squares), abs=1e-6)
    potentials = [
        math.exp(-2 * float((a[i] - a[j]).square().sum()))
        for i, j in itertools.permutations(range(9), 2)
    ]
    assert uniformity(a) == pytest.approx(math.log(statistics.fmean(potentials)), abs=1e-6)
    assert modality_gap(a, b) == pytest.approx(float((a.mean(0) - b.mean(0)).norm()), abs=1e-6)


def test_uniformity_in_chunks_is_that_of_the_whole(monkeypatch):
    x = unit(50, 8)
    whole = uniformity(x)
    monkeypatch.setattr("multimodal.evaluation.metrics.diagnostics._CELLS", 50 * 7)
    assert uniformity(x) == pytest.approx(whole, abs=1e-12)


def test_extremes():
    same = torch.ones(6, 1) @ unit(1, 8)
    assert uniformity(same) == pytest.approx(0.0, abs=1e-6)
    assert effective_rank(same) == pytest.approx(1.0, abs=1e-4)
    assert alignment(same, -same) == pytest.approx(4.0, abs=1e-5)
    assert modality_gap(same, -same) == pytest.approx(2.0, abs=1e-5)
    assert effective_rank(torch.eye(7)) == pytest.approx(7.0)
    assert math.isnan(uniformity(same[:1]))
    with pytest.raises(ValueError, match="not defined"):
        effective_rank(torch.zeros(3, 3))


def test_effective_rank_follows_its_definition():
    x = torch.diag(torch.tensor([3.0, 1.0, 0.0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(x) == pytest.approx(math.exp(entropy))
