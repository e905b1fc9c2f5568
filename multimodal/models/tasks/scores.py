"""Scores of predictions, with chance levels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimodal.core.bootstrap import Interval, distinct, group_mean_interval, interval

Values = NDArray[np.float64]
UNIT = (0.0, 1.0)
MAX_TABLE = 2**17  # scores


@dataclass(frozen=True, slots=True)
class Scores:
    """How good predictions are.

    Attributes:
        values: metric -> value, the one to look at first in front.
        chance: metric -> chance level, if known.
        samples: how many were predicted.
        resampled: metric -> its 95 % interval over the samples, computed when it is asked for.
    """

    values: dict[str, float]
    chance: dict[str, float]
    samples: int
    resampled: Mapping[str, Callable[[], Interval]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def interval(self, metric: str) -> Interval | None:
        """95 % interval of a metric (`bootstrap`); None where it has none."""
        compute = self.resampled.get(metric)
        return None if compute is None else compute()


@dataclass(frozen=True, slots=True)
class OverSamples:
    """Statistics of every sample, from whose sums metrics are computed; resampled for intervals.

    Attributes:
        rows: ``[U, S]`` of the distinct samples.
        counts: ``[U]``, how often each occurs.
    """

    rows: Values
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, *columns: Tensor) -> OverSamples:
        """From one number per sample each, ``[N]``."""
        numbers = torch.stack([column.detach().double().cpu() for column in columns], dim=1)
        return cls(*distinct(numbers.numpy()))

    def mean(self, column: int) -> Callable[[], Interval]:
        """The mean of a column that lies between 0 and 1."""
        return self.figure(lambda means: means[:, column], UNIT)

    def figure(
        self, of_means: Callable[[Values], Values], bounds: tuple[float, float] | None = None
    ) -> Callable[[], Interval]:
        """A metric of the columns' means: ``[R, S]`` -> ``[R]``."""

        @functools.cache
        def compute() -> Interval:
            def of_draws(drawn: Values) -> Values:
                return of_means(drawn @ self.rows / drawn.sum(axis=1, keepdims=True))

            return interval(of_draws, self.counts, bounds)

        return compute


def _once(compute: Callable[..., Interval], *given: Tensor) -> Callable[[], Interval]:
    return functools.cache(lambda: compute(*given))


def classification_scores(predicted: Tensor, labels: Tensor, classes: int) -> Scores:
    """Accuracy and its mean per class that occurs.

    Args:
        predicted: ``[N]`` int64.
        labels: ``[N]`` int64.
        classes: how many there are.
    """
    right = (predicted == labels).double()
    present = torch.unique(labels)
    per_class = torch.stack([right[labels == label].mean() for label in present])
    commonest = labels.bincount(minlength=classes).max() / len(labels)
    return Scores(
        {"accuracy": right.mean().item(), "mean_per_class": per_class.mean().item()},
        {"accuracy": max(1 / classes, commonest.item()), "mean_per_class": 1 / classes},
        len(labels),
        {
            "accuracy": OverSamples.of(right).mean(0),
            "mean_per_class": _once(group_mean_interval, labels.cpu(), right.cpu()),
        },
    )


def multi_label_scores(scores: Tensor, labels: Tensor) -> Scores:
    """Mean average precision over labels that occur, and micro F1 at a probability of one half.

    The precision of a table of more than `MAX_TABLE` scores has no interval: minutes of work.

    Args:
        scores: ``[N, C]`` logits.
        labels: ``[N, C]`` of 0 and 1.
    """
    occurring = labels.sum(dim=0) > 0
    precisions = [average_precision(scores[:, c], labels[:, c]) for c in occurring.nonzero()[:, 0]]
    given, true = scores > 0, labels > 0
    f1 = 2 * (given & true).sum() / (given.sum() + true.sum()).clamp_min(1)
    share = labels[:, occurring].double().mean()
    return Scores(
        {"mean_average_precision": float(torch.stack(precisions).mean()), "f1": f1.item()},
        {"mean_average_precision": share.item()},
        len(labels),
        {
            "f1": OverSamples.of(
                *(table.sum(dim=1) for table in (given & true, given, true))
            ).figure(lambda m: 2 * m[:, 0] / (m[:, 1] + m[:, 2]).clip(1e-12), UNIT),
            **(
                {"mean_average_precision": _once(_precision_interval, scores, labels)}
                if scores.numel() <= MAX_TABLE
                else {}
            ),
        },
    )


def _precision_interval(scores: Tensor, labels: Tensor) -> Interval:
    """Of the mean average precision; copies of a sample stand in succession, as ties do."""
    order = scores.argsort(dim=0, descending=True, stable=True)
    orders = order.T.cpu().numpy()
    relevant = labels.gather(0, order).T.cpu().numpy() > 0
    harmonic = np.concatenate([[0.0], (1 / np.arange(1.0, len(labels) + 1)).cumsum()])

    def figure(drawn: Values) -> Values:
        total, classes = np.zeros(len(drawn)), np.zeros(len(drawn))
        for places, right in zip(orders, relevant, strict=True):
            copies = drawn[:, places]
            upto = copies.cumsum(axis=1)
            before = upto - copies
            hits = copies * right
            ahead = hits.cumsum(axis=1) - hits
            # The sum over a sample's copies j = 1.. of (ahead + j) / (before + j).
            span = harmonic[upto.astype(np.int64)] - harmonic[before.astype(np.int64)]
            gains = right * (copies + (ahead - before) * span)
            correct = hits.sum(axis=1)
            total += np.where(correct > 0, gains.sum(axis=1) / correct.clip(1), 0)
            classes += correct > 0
        return total / np.where(classes > 0, classes, np.nan)

    return interval(figure, np.ones(len(labels), dtype=np.int64), UNIT)


def average_precision(scores: Tensor, relevant: Tensor) -> Tensor:
    """Mean precision at the ranks of the relevant items of ``[N]``; ties in their given order."""
    hits = relevant[scores.argsort(descending=True, stable=True)].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1, device=hits.device)
    return (precision * hits).sum() / hits.sum()


def regression_scores(predicted: Tensor, targets: Tensor) -> Scores:
    """Mean absolute error, root mean square error, correlation; chance is always the mean.

    Args:
        predicted: ``[N, K]``.
        targets: ``[N, K]``; the correlation is the mean over K.
    """
    predicted, targets = predicted.double(), targets.double()
    error, spread = predicted - targets, targets - targets.mean(dim=0)
    moved = predicted - predicted.mean(dim=0)
    size = (moved.square().sum(0) * spread.square().sum(0)).sqrt().clamp_min(1e-12)
    correlation = ((moved * spread).sum(0) / size).mean()
    return Scores(
        {
            "mae": error.abs().mean().item(),
            "rmse": error.square().mean().sqrt().item(),
            "correlation": correlation.item(),
        },
        {
            "mae": spread.abs().mean().item(),
            "rmse": spread.square().mean().sqrt().item(),
            "correlation": 0.0,
        },
        len(targets),
        _regression_intervals(error, moved, spread),
    )


def _regression_intervals(
    error: Tensor, moved: Tensor, spread: Tensor
) -> dict[str, Callable[[], Interval]]:
    outputs = error.shape[1]
    samples = OverSamples.of(
        error.abs().mean(dim=1),
        error.square().mean(dim=1),
        *moved.T,
        *spread.T,
        *moved.square().T,
        *spread.square().T,
        *(moved * spread).T,
    )

    def correlation(means: Values) -> Values:
        x, y, xx, yy, xy = np.split(means[:, 2:], range(outputs, 5 * outputs, outputs), axis=1)
        size = np.sqrt(((xx - x * x) * (yy - y * y)).clip(0)).clip(1e-12)
        return np.asarray(((xy - x * y) / size).mean(axis=1))

    return {
        "mae": samples.figure(lambda means: means[:, 0]),
        "rmse": samples.figure(lambda means: np.sqrt(means[:, 1].clip(0))),
        "correlation": samples.figure(correlation),
    }


def ordinal_scores(predicted: Tensor, labels: Tensor, classes: int) -> Scores:
    """Accuracy, mean absolute error in levels, and quadratically weighted kappa (Cohen 1968).

    Args:
        predicted: ``[N]`` int64, levels from 0.
        labels: ``[N]`` int64.
        classes: number of levels.
    """
    accuracy = classification_scores(predicted, labels, classes)
    error = (predicted - labels).double()
    median = labels.double().median()
    expected = (predicted[:, None] - labels[None, :]).double().square().mean()
    kappa = 1 - error.square().mean() / expected.clamp_min(1e-12)
    x, y = predicted.double(), labels.double()
    samples = OverSamples.of(error.abs(), x, y, x.square(), y.square(), error.square())
    return Scores(
        {
            "accuracy": accuracy.values["accuracy"],
            "mae": error.abs().mean().item(),
            "kappa": kappa.item(),
        },
        {
            "accuracy": accuracy.chance["accuracy"],
            "mae": (labels.double() - median).abs().mean().item(),
            "kappa": 0.0,
        },
        len(labels),
        {
            "accuracy": accuracy.resampled["accuracy"],
            "mae": samples.figure(lambda means: means[:, 0]),
            "kappa": samples.figure(_kappa),
        },
    )


def _kappa(means: Values) -> Values:
    _, x, y, xx, yy, error = means.T
    return np.asarray(1 - error / (xx + yy - 2 * x * y).clip(1e-12))
