"""Scores of predictions, with chance levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scores:
    """How good predictions are.

    Attributes:
        values: metric -> value, the one to look at first in front.
        chance: metric -> chance level, if known.
        samples: how many were predicted.
    """

    values: dict[str, float]
    chance: dict[str, float]
    samples: int


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
    )


def multi_label_scores(scores: Tensor, labels: Tensor) -> Scores:
    """Mean average precision over labels that occur, and micro F1 at a probability of one half.

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
    )


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
    )


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
    )
