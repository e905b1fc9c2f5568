"""Intervals against plain loops, against scipy, and by how often they hold."""

from __future__ import annotations

import numpy as np
import pytest
import scipy  # its `stats` are imported when they are used: two seconds

from multimodal.core import bootstrap
from multimodal.core.bootstrap import Interval, distinct, interval, mean_interval


def loops(values: list[float], resamples: int, seed: int) -> Interval:
    """BCa as Efron writes it: one resample, one left-out sample at a time."""
    random = np.random.default_rng(seed)
    n = len(values)
    estimate = sum(values) / n
    drawn = []
    for _ in range(resamples):
        total = 0.0
        for place in random.integers(0, n, n):
            total += values[place]
        drawn.append(total / n)
    less = sum(x < estimate - 1e-12 for x in drawn) / resamples
    same = sum(abs(x - estimate) <= 1e-12 for x in drawn) / resamples
    bias = scipy.stats.norm.ppf(less + same / 2)
    left = [(sum(values) - value) / (n - 1) for value in values]
    middle = sum(left) / n
    growth = sum((middle - x) ** 3 for x in left) / (
        6 * sum((middle - x) ** 2 for x in left) ** 1.5
    )
    ends = []
    for z in scipy.stats.norm.ppf([0.025, 0.975]):
        share = scipy.stats.norm.cdf(bias + (bias + z) / (1 - growth * (bias + z)))
        ends.append(float(np.quantile(drawn, share)))
    return Interval(*ends)


@pytest.mark.parametrize(
    "values",
    [
        [1.0] * 9 + [0.0] * 51,
        [1.0] * 3 + [0.0] * 77,
        [1.0] * 40 + [0.0] * 8 + [0.5, 0.25, 1 / 3],  # ties are scored by their expectation
        [1 / (1 + i % 13) for i in range(70)],
    ],
)
def test_equals_plain_loops_up_to_the_noise_of_drawing(values):
    found = mean_interval(values)
    # Two streams of thousands of draws: quantiles of a mean differ by one sample's share.
    again = loops(values, 4000, seed=1)
    assert found == pytest.approx(again, abs=1.2 / len(values))


def test_equals_scipy():
    values = np.random.default_rng(0).beta(0.5, 2, 200)
    found = mean_interval(values)
    given = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found == pytest.approx((given.low, given.high), abs=0.05 * (given.high - given.low))


@pytest.mark.parametrize(("n", "p"), [(40, 0.1), (120, 0.02), (140, 0.143), (200, 0.4), (60, 0.9)])
def test_holds_in_95_of_100_simulated_sets(n, p):
    """Exact: every possible number of hits, weighted by its binomial probability."""
    held = 0.0
    for hits in range(n + 1):
        weight = scipy.stats.binom.pmf(hits, n, p)
        if weight > 1e-6:
            low, high = mean_interval([1.0] * hits + [0.0] * (n - hits))
            held += weight * (low - 1e-9 <= p <= high + 1e-9)
    assert 0.93 <= held <= 1


def test_no_hit_and_only_hits_have_the_exact_bound():
    assert mean_interval([0.0] * 140) == (0.0, pytest.approx(1 - 0.025 ** (1 / 140)))
    assert mean_interval([1.0] * 16) == (pytest.approx(0.025 ** (1 / 16)), 1.0)
    assert mean_interval([0.0]) == (0.0, pytest.approx(0.975))
    exact = scipy.stats.binomtest(0, 140).proportion_ci(method="exact")
    assert mean_interval([0.0] * 140) == pytest.approx((exact.low, exact.high))
    # Ties everywhere: what a collapsed model scores is known without error.
    assert mean_interval([1 / 7] * 30) == (pytest.approx(1 / 7), pytest.approx(1 / 7))
    assert mean_interval([0.0] * 9, bounds=(-1, 1)) == (0.0, 0.0)
    assert mean_interval([-1.0] * 9, bounds=(-1, 1))[1] > -1


def test_order_and_memory_change_no_digit(monkeypatch):
    values = np.random.default_rng(3).random(90)
    found = mean_interval(values)
    assert mean_interval(values[::-1]) == found == mean_interval(values)
    monkeypatch.setattr(bootstrap, "_CELLS", 1000)
    assert mean_interval(values) == pytest.approx(found, rel=1e-12)


@pytest.mark.heavy
def test_a_figure_that_is_no_mean():
    random = np.random.default_rng(5)
    x = random.normal(size=80)
    y = 0.6 * x + random.normal(size=80)
    moments = np.stack([x, y, x * x, y * y, x * y], axis=1)

    def correlation(counts):
        mx, my, xx, yy, xy = (counts @ moments / counts.sum(axis=1, keepdims=True)).T
        return (xy - mx * my) / np.sqrt((xx - mx * mx) * (yy - my * my))

    found = interval(correlation, np.ones(80))
    given = scipy.stats.bootstrap(
        (x, y), lambda a, b: scipy.stats.pearsonr(a, b).statistic, paired=True, vectorized=False,
        n_resamples=4000, method="BCa", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert found == pytest.approx((given.low, given.high), abs=0.03)


def test_draws_without_a_figure_are_left_out():
    rows, counts = distinct([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]])

    def share(drawn):
        with np.errstate(all="ignore"):
            return (drawn @ rows[:, 0]) / (drawn @ rows[:, 0])

    assert interval(share, counts) == (1.0, 1.0)
    low, high = interval(lambda drawn: np.full(len(drawn), np.nan), counts)
    assert np.isnan([low, high]).all()


@pytest.mark.parametrize("values", [[], [0.5, 1.5], [0.5, float("nan")]])
def test_values_outside_their_range_are_rejected(values):
    with pytest.raises(ValueError, match=r"within \[0.0, 1.0\]"):
        mean_interval(values)
