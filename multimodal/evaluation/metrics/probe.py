"""Classifiers on frozen embeddings: linear probe, few-shot, nearest neighbours; by scikit-learn.

The linear probe is a multinomial logistic regression whose L2 strength is chosen on validation
data (Radford et al. 2021, appendix A.3). Few-shot draws some samples of every class, several
times over.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from multimodal.core.bootstrap import Interval, mean_interval

if TYPE_CHECKING:  # and imported where it is used: scikit-learn takes as long as torch
    from sklearn.linear_model import LogisticRegression

SHOTS = (1, 2, 4, 8, 16)
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the L2 penalty, on embeddings of unit norm
NEIGHBOURS = 20

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Samples:
    """Embeddings ``[N, D]`` and their classes ``[N]`` (int64)."""

    vectors: Vectors
    labels: Labels

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.labels.shape != (len(self.vectors),):
            raise ValueError(
                f"expected embeddings [N, D] and one label each; got {list(self.vectors.shape)} "
                f"and {list(self.labels.shape)}"
            )
        if not np.isfinite(self.vectors).all():
            raise ValueError("the embeddings of a probe hold NaN or infinity")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: NDArray[Any]) -> Samples:
        """Those at ``places``."""
        return Samples(self.vectors[places], self.labels[places])


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Scores of one classifier, fractions of 1.

    Attributes:
        top1: share of right samples.
        mean_per_class: mean over classes of their share of right samples.
        strength: of the L2 penalty that validation chose; None for nearest neighbours.
        interval: of ``top1``, 95 % over the test samples (`bootstrap`), where known.
    """

    top1: float
    mean_per_class: float
    strength: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class FewShot:
    """Accuracy with few samples per class, over several draws of them.

    Attributes:
        shots: samples of each class.
        mean: of the draws' ``top1``.
        deviation: of the draws, as a sample's standard deviation; 0 for one draw.
        draws: how many.
    """

    shots: int
    mean: float
    deviation: float
    draws: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Scores of classifiers on frozen embeddings.

    Attributes:
        linear: logistic regression on all training samples.
        neighbours: vote of the ``k`` nearest.
        k: of the vote.
        few_shot: by number of shots, those that the smallest class can give.
        classes: number of classes.
        train: number of training samples.
        test: number of test samples.
        chance: a uniform guess.
        majority: the commonest class of the test samples.
    """

    linear: Accuracy
    neighbours: Accuracy
    k: int
    few_shot: list[FewShot] = field(default_factory=list)
    classes: int = 0
    train: int = 0
    test: int = 0
    chance: float = 0.0
    majority: float = 0.0


def probe(
    train: Samples,
    test: Samples,
    validation: Samples | None = None,
    shots: Sequence[int] = SHOTS,
    draws: int = 3,
    seed: int = 0,
) -> Probe:
    """Linear probe, few-shot and nearest neighbours, trained on ``train``, scored on ``test``.

    Args:
        train: to learn from.
        test: looked at once, at the end.
        validation: chooses the strength of the L2 penalty; None holds out a fifth of ``train``.
        shots: numbers of samples per class.
        draws: how often the samples of a few-shot are drawn.
        seed: of the draws and of the part held out.

    Raises:
        ValueError: if ``train`` has fewer than two classes, or ``test`` one that it lacks.
    """
    classes, counts = np.unique(train.labels, return_counts=True)
    unknown = sorted(set(test.labels.tolist()) - set(classes.tolist()))
    if len(classes) < 2 or unknown:
        raise ValueError(
            "a probe needs at least two classes, and those of the test samples among them; "
            f"training has {len(classes)}, without {unknown or 'none'} of the test samples'"
        )
    from sklearn.neighbors import KNeighborsClassifier

    random = np.random.default_rng(seed)
    fit_set, selection_set = (train, validation) if validation else hold_out(train, seed)
    strength = choose_strength(fit_set, selection_set)
    few = []
    for count in sorted(set(shots)):
        if count > counts.min():
            break
        scores = [_few_shot(train, test, validation, classes, count, random) for _ in range(draws)]
        deviation = statistics.stdev(scores) if draws > 1 else 0.0
        few.append(FewShot(count, statistics.fmean(scores), deviation, draws))
    k = min(NEIGHBOURS, len(train))
    vote = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute")
    return Probe(
        linear=_score(fit_linear(train, strength), test, strength),
        neighbours=_score(vote.fit(train.vectors, train.labels), test),
        k=k,
        few_shot=few,
        classes=len(classes),
        train=len(train),
        test=len(test),
        chance=1 / len(classes),
        majority=float(np.unique(test.labels, return_counts=True)[1].max() / len(test)),
    )


def hold_out(samples: Samples, seed: int, share: float = 0.2) -> tuple[Samples, Samples]:
    """(the rest, ``share`` of the samples), with every class's share where it has two samples."""
    from sklearn.model_selection import train_test_split

    counts = np.unique(samples.labels, return_counts=True)[1]
    enough = counts.min() >= 2 and round(share * len(samples)) >= len(counts)
    stay, out = train_test_split(
        np.arange(len(samples)),
        test_size=max(share, len(counts) / len(samples)) if enough else share,
        random_state=seed,
        stratify=samples.labels if enough else None,
    )
    return samples.take(stay), samples.take(out)


def choose_strength(train: Samples, validation: Samples) -> float:
    """The L2 strength of `STRENGTHS` that classifies ``validation`` best; the strongest of equals.

    Returns:
        lambda of ``mean cross-entropy + lambda / 2 |W|^2 / N``, scikit-learn's 1 / C.
    """
    scores = [
        (float(fit_linear(train, s).score(validation.vectors, validation.labels)), s)
        for s in STRENGTHS
    ]
    return max(scores)[1]


def fit_linear(train: Samples, strength: float) -> LogisticRegression:
    """Multinomial logistic regression with an L2 penalty of ``strength``."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / strength, max_iter=300, tol=1e-4)
    with warnings.catch_warnings():
        # On separable samples a weak penalty never converges; its accuracy does.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(train.vectors, train.labels)


def _few_shot(
    train: Samples,
    test: Samples,
    validation: Samples | None,
    classes: Labels,
    shots: int,
    random: np.random.Generator,
) -> float:
    drawn = np.concatenate(
        [
            random.choice((train.labels == label).nonzero()[0], shots, replace=False)
            for label in classes
        ]
    )
    few = train.take(drawn)
    rest = np.setdiff1d(np.arange(len(train)), drawn)
    selection_set = validation or (train.take(rest) if len(rest) else few)
    model = fit_linear(few, choose_strength(few, selection_set))
    return float(model.score(test.vectors, test.labels))


def _score(model: Any, test: Samples, strength: float | None = None) -> Accuracy:
    from sklearn.metrics import balanced_accuracy_score

    predictions = model.predict(test.vectors)
    return Accuracy(
        float((predictions == test.labels).mean()),
        float(balanced_accuracy_score(test.labels, predictions)) if len(predictions) else 0.0,
        strength,
        mean_interval(predictions == test.labels),
    )
