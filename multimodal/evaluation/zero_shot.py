"""Zero-shot classification: a sample is given the class whose prompts embed nearest to it.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, section 3.1.4 (prompt ensembling over the embedding space).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from multimodal.evaluation.retrieval import similarity_rows

_CHUNK = 8192


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """Scores of one classification; all are fractions of 1 except the counts.

    Attributes:
        top1: share of the samples given their own class.
        top5: share with their own class among the first five.
        mean_per_class: mean over the classes present of their share of right samples.
        confusion: ``[C, C]`` float64 counts, rows are labels and columns predictions; a sample
            whose best classes tie is shared among them, so the diagonal's share is ``top1``.
        chance_top1: a uniform guess, 1 / C (of ``mean_per_class`` too).
        chance_top5: likewise, min(5, C) / C.
        majority: share of the most frequent class, what a constant answer would score.
        samples: number of samples scored.
        classes: number of classes to choose from.
    """

    top1: float
    top5: float
    mean_per_class: float
    confusion: Tensor
    chance_top1: float
    chance_top5: float
    majority: float
    samples: int
    classes: int


def class_embeddings(prompts: Sequence[Tensor]) -> Tensor:
    """One unit vector per class: the mean of its normalised prompt embeddings, normalised.

    Args:
        prompts: ``[P, D]`` text embeddings for each of C classes, P may differ.

    Returns:
        ``[C, D]``, of unit norm.

    Raises:
        ValueError: On no class, or a class without prompts.
    """
    wrong = [list(rows.shape) for rows in prompts if rows.ndim != 2 or len(rows) == 0]
    if wrong or len(prompts) == 0:
        raise ValueError(f"expected prompt embeddings [P, D] per class; got {wrong or 'no class'}")
    means = [functional.normalize(rows, dim=-1).mean(dim=0) for rows in prompts]
    return functional.normalize(torch.stack(means), dim=-1)


def zero_shot(embeddings: Tensor, classes: Tensor, labels: Tensor) -> ZeroShot:
    """Classifies ``embeddings`` by the nearest class embedding.

    Args:
        embeddings: ``[N, D]``, of unit norm.
        classes: ``[C, D]``, of unit norm (:func:`class_embeddings`).
        labels: ``[N]`` int64 in ``[0, C)``.

    Raises:
        ValueError: On no sample, shapes or labels that do not fit, NaN or infinity.
    """
    n_samples, n_classes = len(embeddings), len(classes)
    if n_samples == 0 or labels.shape != (n_samples,):
        raise ValueError(
            f"expected one label for each of at least one sample; got {n_samples} samples "
            f"and labels {list(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= n_classes:
        raise ValueError(
            f"labels must lie in [0, {n_classes}), one of the classes; "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
    rows = similarity_rows(embeddings, classes)
    top5 = 0.0
    confusion = torch.zeros(n_classes, n_classes, dtype=torch.float64, device=embeddings.device)
    for start in range(0, n_samples, _CHUNK):
        logits_NC = rows(start, min(start + _CHUNK, n_samples))
        own = labels[start : start + _CHUNK]
        best = (logits_NC == logits_NC.amax(dim=1, keepdim=True)).double()
        confusion.index_add_(0, own, best / best.sum(dim=1, keepdim=True))
        score = logits_NC.gather(1, own[:, None])
        ahead = (logits_NC > score).sum(dim=1)
        tied = (logits_NC == score).sum(dim=1)
        top5 += ((5 - ahead).double() / tied).clamp(0, 1).sum().item()
    counts = confusion.sum(dim=1).round()
    present = counts > 0
    return ZeroShot(
        top1=confusion.trace().item() / n_samples,
        top5=top5 / n_samples,
        mean_per_class=(confusion.diag()[present] / counts[present]).mean().item(),
        confusion=confusion,
        chance_top1=1 / n_classes,
        chance_top5=min(5, n_classes) / n_classes,
        majority=counts.max().item() / n_samples,
        samples=n_samples,
        classes=n_classes,
    )
