"""Zero-shot classification: a sample is given the class whose prompts embed nearest to it.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, section 3.1.4 (prompt ensembling over the embedding space).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from multimodal.core.bootstrap import Interval, group_mean_interval, mean_interval
from multimodal.evaluation.metrics.ranking import (
    Answers,
    Ranked,
    Rows,
    chance_precision,
    chunks,
    hit_probability,
    rank,
)
from multimodal.evaluation.metrics.retrieval import similarity_rows


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """Scores of one classification; all are fractions of 1 except the counts.

    Where samples have several labels, a sample is right when its best class is one of them.

    Attributes:
        top1: share of the samples given their own class.
        top5: share with their own class among the first five.
        mean_per_class: mean over the classes present of their share of right samples.
        mean_average_precision: mean over the classes present of the average precision of their
            samples, ranked by the class's prompt: the figure of multi-label sets (AudioSet).
        confusion: ``[C, C]`` float64 counts, rows are labels and columns predictions; a sample
            whose best classes tie is shared among them, so the diagonal's share is ``top1``.
            None where samples have several labels.
        chance_top1: a uniform guess, 1 / C with one label.
        chance_top5: likewise, min(5, C) / C with one label.
        chance_mean_average_precision: samples in a random order.
        majority: share of the samples of the most frequent class, a constant answer's score.
        samples: number of samples scored.
        classes: number of classes to choose from.
        ranked: the scores of every sample.
        labels: as given.
    """

    top1: float
    top5: float
    mean_per_class: float
    mean_average_precision: float
    confusion: Tensor | None
    chance_top1: float
    chance_top5: float
    chance_mean_average_precision: float
    majority: float
    samples: int
    classes: int
    ranked: Ranked = field(compare=False, repr=False)
    labels: Tensor = field(compare=False, repr=False)

    def intervals(self) -> dict[str, Interval]:
        """95 % intervals over the samples (`bootstrap`): ``top@1``, ``top@5``, ``mean_per_class``.

        The last only where samples have one label; a mean over classes of what each retrieves,
        such as the mean average precision, is none over samples and has no interval.
        """
        first, fifth = self.ranked.hits.cpu().numpy()
        bounds = {"top@1": mean_interval(first), "top@5": mean_interval(fifth)}
        if self.labels.ndim == 1:
            bounds["mean_per_class"] = group_mean_interval(self.labels.cpu().numpy(), first)
        return bounds


def class_embeddings(prompts: Sequence[Tensor]) -> Tensor:
    """One unit vector per class: the mean of its normalised prompt embeddings, normalised.

    Args:
        prompts: ``[P, D]`` text embeddings for each of C classes, P may differ.

    Returns:
        ``[C, D]``, of unit norm.

    Raises:
        ValueError: if given no class, or a class without prompts.
    """
    wrong = [list(rows.shape) for rows in prompts if rows.ndim != 2 or len(rows) == 0]
    if wrong or len(prompts) == 0:
        raise ValueError(f"expected prompt embeddings [P, D] per class; got {wrong or 'no class'}")
    means = [functional.normalize(rows, dim=-1).mean(dim=0) for rows in prompts]
    return functional.normalize(torch.stack(means), dim=-1)


def zero_shot(
    embeddings: Tensor,
    classes: Tensor,
    labels: Tensor,
    shared: bool = False,
    owners: Tensor | None = None,
) -> ZeroShot:
    """Classifies ``embeddings`` by the nearest class embedding.

    Args:
        embeddings: ``[N, D]``, of unit norm.
        classes: ``[C, D]``, of unit norm (`class_embeddings`); or ``[P, D]`` with ``owners``.
        labels: ``[N]`` int64 in ``[0, C)``, or ``[N, C]`` bool where samples have several; each
            has at least one.
        shared: each rank of the process group scores its share, as in `ranking.rank`.
        owners: ``[P]`` int64 in ``[0, C)``, ascending, every class at least once: whose each of
            several embeddings is; a class is as near as the nearest of its own. None: one each.

    Raises:
        ValueError: if given no sample, shapes or labels that do not fit, NaN or infinity.
    """
    n_samples = len(embeddings)
    n_classes = len(classes) if owners is None else int(owners.max()) + 1
    labels_NC = _one_hot(labels, n_samples, n_classes)
    rows = _nearest_of_each(similarity_rows(embeddings, classes), owners, n_classes)
    ranks = rank(rows, Answers.by_table(labels_NC), n_classes, (1, 5), shared=shared)
    by_class = rank(
        _by_class(embeddings, classes, owners),
        Answers.by_table(labels_NC.T),
        n_samples,
        (1,),
        shared=shared,
    )
    counts = labels_NC.sum(dim=0).double()
    present = counts > 0
    right = (labels_NC.double() * ranks.hits[0][:, None]).sum(dim=0)
    return ZeroShot(
        top1=ranks.hits[0].mean().item(),
        top5=ranks.hits[1].mean().item(),
        mean_per_class=(right[present] / counts[present]).mean().item(),
        mean_average_precision=by_class.precision.mean().item(),
        confusion=_confusion(rows, labels, n_classes) if labels.ndim == 1 else None,
        chance_top1=hit_probability(ranks.positives, n_classes, 1).mean().item(),
        chance_top5=hit_probability(ranks.positives, n_classes, 5).mean().item(),
        chance_mean_average_precision=chance_precision(by_class.positives, n_samples).mean().item(),
        majority=counts.max().item() / n_samples,
        samples=n_samples,
        classes=n_classes,
        ranked=ranks,
        labels=labels,
    )


def _nearest_of_each(rows: Rows, owners: Tensor | None, n_classes: int) -> Rows:
    """Rows of samples by classes, from those by the classes' several embeddings."""
    if owners is None or len(owners) == n_classes:
        return rows

    def nearest(start: int, stop: int) -> Tensor:
        scores_qP = rows(start, stop)
        lowest = scores_qP.new_full((len(scores_qP), n_classes), -torch.inf)
        return lowest.scatter_reduce(1, owners.expand(len(scores_qP), -1), scores_qP, "amax")

    return nearest


def _by_class(embeddings: Tensor, classes: Tensor, owners: Tensor | None) -> Rows:
    """Rows of classes by samples."""
    rows = similarity_rows(classes, embeddings)
    if owners is None or len(owners) == int(owners.max()) + 1:
        return rows
    starts = torch.searchsorted(owners, torch.arange(int(owners.max()) + 2)).tolist()

    def nearest(start: int, stop: int) -> Tensor:
        each = [rows(starts[c], starts[c + 1]).amax(dim=0) for c in range(start, stop)]
        return torch.stack(each) if each else rows(0, 0)

    return nearest


def _one_hot(labels: Tensor, n_samples: int, n_classes: int) -> Tensor:
    if n_samples == 0 or labels.ndim not in (1, 2) or len(labels) != n_samples:
        raise ValueError(
            f"expected one label for each of at least one sample; got {n_samples} samples "
            f"and labels {list(labels.shape)}"
        )
    if labels.ndim == 2:
        if labels.dtype != torch.bool or labels.shape[1] != n_classes:
            raise ValueError(
                f"several labels per sample are a bool table [{n_samples}, {n_classes}]; "
                f"got {labels.dtype} {list(labels.shape)}"
            )
        without = (~labels.any(dim=1)).nonzero().flatten().tolist()
        if without:
            raise ValueError(f"{len(without)} samples have no label (the first: {without[0]})")
        return labels
    if int(labels.min()) < 0 or int(labels.max()) >= n_classes:
        raise ValueError(
            f"labels must lie in [0, {n_classes}), one of the classes; "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
    return functional.one_hot(labels, n_classes).bool()


def _confusion(rows: Rows, labels: Tensor, n_classes: int) -> Tensor:
    confusion = torch.zeros(n_classes, n_classes, dtype=torch.float64, device=labels.device)
    for start, stop in chunks(range(len(labels)), n_classes, None):
        scores_qC = rows(start, stop)
        best = (scores_qC == scores_qC.amax(dim=1, keepdim=True)).double()
        confusion.index_add_(0, labels[start:stop], best / best.sum(dim=1, keepdim=True))
    return confusion
