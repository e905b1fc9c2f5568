"""95 % intervals of held-out figures: a bootstrap over the samples.

The method is BCa (Efron, "Better Bootstrap Confidence Intervals", JASA 82, 1987, sections 2 and 6):
the samples are drawn `RESAMPLES` times with replacement, the figure is computed of each draw, and
the interval lies between two quantiles of these, corrected for bias and for a spread that grows
with the figure. The plain percentile interval is too narrow for the small shares that held-out
tables are full of.

Where every draw gives the same figure (no query hit, or all of them) a bootstrap says nothing. If
the figure is at a bound of its range, the interval is the exact one of Clopper and Pearson (1934):
none of n gives 0 to 1 - 0.025^(1/n).

Only the number of times that each distinct sample is drawn matters, so a draw is a vector of
multinomial counts, and the samples' order changes no digit. The stream is keyed by the number of
samples and nothing else: equal data give equal intervals, in every process. Samples count as
independent: of several captions of a picture, or windows of one recording, the interval is too
narrow. It holds for this model; another training seed is another model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from multimodal.core.hashing import generator

RESAMPLES = 4000
LEVEL = 0.95

_CELLS = 2**22  # counts held at once
_SLOWER = 16  # a binomial draw against picking one sample
_TIE = 1e-12  # relative: figures of equal draws differ in the order of a sum
_NORMAL = NormalDist()

Values = NDArray[np.float64]
Figure = Callable[[Values], Values]
"""``[R, U]`` counts of U distinct samples, R draws -> ``[R]``, NaN where a draw has no figure."""


class Interval(NamedTuple):
    """Bounds of a 95 % interval."""

    low: float
    high: float


def mean_interval(values: ArrayLike, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval:
    """The interval of a mean.

    Args:
        values: ``[N]``, one per sample.
        bounds: of what a value may be.

    Raises:
        ValueError: if given no value, one outside ``bounds``, or NaN.
    """
    every = np.asarray(values, dtype=np.float64).ravel()
    if not len(every) or not (every.min() >= bounds[0] - _TIE and every.max() <= bounds[1] + _TIE):
        raise ValueError(
            f"an interval needs values within {list(bounds)}, at least one; got {len(every)}"
            + (f" from {every.min()} to {every.max()}" if len(every) else "")
        )
    distinct, counts = np.unique(every, return_counts=True)
    return _mean_interval(tuple(distinct.tolist()), tuple(counts.tolist()), bounds)


@functools.lru_cache(maxsize=512)  # tables, files and reports ask for the same one
def _mean_interval(
    distinct: tuple[float, ...], counts: tuple[int, ...], bounds: tuple[float, float]
) -> Interval:
    values = np.array(distinct)
    return interval(lambda drawn: drawn @ values / drawn.sum(axis=1), counts, bounds)


def interval(
    figure: Figure, counts: ArrayLike, bounds: tuple[float, float] | None = None
) -> Interval:
    """The interval of any figure of a weighted sample.

    Args:
        figure: computes it of how often each distinct sample counts, for many draws at once.
        counts: ``[U]``, how often each occurs in the data.
        bounds: the figure's range, where it is at a bound only if all samples are.

    Returns:
        NaN twice if the data have no figure.
    """
    counts = np.asarray(counts, dtype=np.int64)
    data = counts[None].astype(np.float64)
    estimate = float(figure(data)[0])
    drawn = np.concatenate([figure(part) for part in _draws(counts)])
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(estimate) or not len(drawn):
        return Interval(float("nan"), float("nan"))
    slack = _TIE * max(1.0, abs(estimate))
    if np.ptp(drawn) <= slack and abs(drawn[0] - estimate) <= slack:
        return _constant(estimate, int(counts.sum()), bounds, slack)
    below = (drawn < estimate - slack).mean() + 0.5 * (np.abs(drawn - estimate) <= slack).mean()
    edge = 0.5 / len(drawn)
    bias = _NORMAL.inv_cdf(min(max(float(below), edge), 1 - edge))
    growth = _acceleration(figure, counts)
    tail = (1 - LEVEL) / 2
    moved = [bias + _NORMAL.inv_cdf(share) for share in (tail, 1 - tail)]
    shares = [_NORMAL.cdf(bias + z / max(1 - growth * z, 0.1)) for z in moved]
    low, high = np.quantile(drawn, shares)
    return Interval(min(float(low), estimate), max(float(high), estimate))


def group_mean_interval(groups: ArrayLike, values: ArrayLike) -> Interval:
    """The interval of the mean over groups of each group's mean, such as accuracy per class.

    A draw's figure is over the groups that are in it.

    Args:
        groups: ``[N]`` integers.
        values: ``[N]``, 0 to 1.
    """
    rows, counts = distinct(np.stack([np.asarray(groups), np.asarray(values)], axis=1))
    member = (rows[:, :1] == np.unique(rows[:, 0])).astype(np.float64)  # [U, groups]

    def figure(drawn: Values) -> Values:
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (drawn @ (member * rows[:, 1:])) / (drawn @ member)
        present = np.isfinite(means)
        total = np.where(present, means, 0).sum(axis=1)
        return np.asarray(total / present.sum(axis=1).clip(1))

    return interval(figure, counts, (0.0, 1.0))


def distinct(rows: ArrayLike) -> tuple[Values, NDArray[np.int64]]:
    """The distinct ``[U, S]`` of ``[N, S]`` rows, and how often each occurs ``[U]``."""
    unique, counts = np.unique(np.asarray(rows, dtype=np.float64), axis=0, return_counts=True)
    return unique, counts


def _draws(counts: NDArray[np.int64]) -> Iterator[Values]:
    """``[r, U]`` counts of `RESAMPLES` draws, in pieces that bound the memory."""
    total = int(counts.sum())
    stream = generator("bootstrap", total)
    size = max(1, _CELLS // len(counts))
    each = np.repeat(np.arange(len(counts)), counts)
    for start in range(0, RESAMPLES, size):
        rows = min(size, RESAMPLES - start)
        if _SLOWER * len(counts) < total:
            yield stream.multinomial(total, counts / total, size=rows).astype(np.float64)
        else:  # the same in law
            yield np.concatenate(list(_picked(stream, each, len(counts), rows)))


def _picked(
    stream: np.random.Generator, each: NDArray[np.int64], kinds: int, rows: int
) -> Iterator[Values]:
    """``[r, kinds]`` counts of ``rows`` draws, in pieces that bound the memory."""
    size = max(1, _CELLS // _SLOWER // len(each))
    for start in range(0, rows, size):
        n = min(size, rows - start)
        picks = each[stream.integers(0, len(each), (n, len(each)))]
        picks += kinds * np.arange(n)[:, None]
        counted = np.bincount(picks.ravel(), minlength=n * kinds)
        yield counted.reshape(n, kinds).astype(np.float64)


def _acceleration(figure: Figure, counts: NDArray[np.int64]) -> float:
    """A sixth of the figure's skewness, by leaving out one sample at a time (equation 6.6)."""
    data = counts.astype(np.float64)
    size = max(1, _CELLS // len(counts))
    parts = []
    for start in range(0, len(counts), size):
        rows = np.arange(start, min(start + size, len(counts)))
        without = np.repeat(data[None], len(rows), axis=0)
        without[np.arange(len(rows)), rows] -= 1
        with np.errstate(all="ignore"):
            parts.append(figure(without))
    left = np.concatenate(parts)
    kept = np.isfinite(left)
    if not kept.any():
        return 0.0
    left, weights = left[kept], data[kept]
    pull = np.average(left, weights=weights) - left
    spread = float((weights * pull**2).sum())
    return float((weights * pull**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _constant(
    estimate: float, total: int, bounds: tuple[float, float] | None, slack: float
) -> Interval:
    if bounds is None:
        return Interval(estimate, estimate)
    low, high = bounds
    reach = (high - low) * (1 - ((1 - LEVEL) / 2) ** (1 / total))
    if abs(estimate - low) <= slack:
        return Interval(low, low + reach)
    if abs(estimate - high) <= slack:
        return Interval(high - reach, high)
    return Interval(estimate, estimate)
