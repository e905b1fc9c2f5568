"""Losses with a softmax over the candidates. Log weights are added to the negatives' logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from multimodal.objectives.contract import (
    Directions,
    Weighting,
    logsumexp,
    masked_mean,
)

ANY_WEIGHTING: frozenset[Weighting] = frozenset({"drops", "weights", "estimate"})


@dataclass(frozen=True)
class InfoNCE:
    """InfoNCE (van den Oord et al. 2018, Eq. 4), symmetric as in CLIP (Radford et al. 2021).

    ``-log(exp(l_p) / (exp(l_p) + sum_n w_n exp(l_n)))``. With several positives, the mean over
    them, each against the negatives alone: the other positives are neither pushed away nor in the
    denominator (SINCERE, Feeney & Hughes 2023).

    Args:
        label_smoothing: in [0, 1); this share of the target lies evenly on the positive and its
            negatives (Szegedy et al. 2016).
        directions: ``mean`` of the two directions as in CLIP, or their ``sum`` as in ImageBind.
    """

    label_smoothing: float = 0.0
    directions: Directions = "mean"

    accepts: ClassVar[frozenset[Weighting]] = ANY_WEIGHTING
    default_scale: ClassVar[float] = 1 / 0.07
    default_bias: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        check_directions(self.directions)

    def __call__(
        self,
        similarities: Tensor,
        scale: Tensor,
        bias: Tensor,
        positives: Tensor,
        log_weights: Tensor,
    ) -> Tensor:
        """The loss of each anchor ``[A]``; see `Loss`."""
        logits_AC = scale * similarities + log_weights
        negatives = ~positives & (log_weights > -float("inf"))
        negatives_A = logsumexp(logits_AC, negatives)
        # -log(e^p / (e^p + e^n)) = softplus(n - p), exact at both ends as -logsigmoid(p - n)
        losses_AC = -F.logsigmoid(logits_AC - negatives_A[:, None])
        if self.label_smoothing:
            # ... + smoothing x (l_p - the mean of l over the positive and its negatives)
            count_A = negatives.sum(dim=1)
            total_A = logits_AC.masked_fill(~negatives, 0).sum(dim=1)
            gaps_AC = (count_A[:, None] * logits_AC - total_A[:, None]) / (1 + count_A[:, None])
            losses_AC = losses_AC + self.label_smoothing * gaps_AC
        return masked_mean(losses_AC, positives)


def check_smoothing(smoothing: float) -> None:
    """Raises ValueError outside of [0, 1)."""
    if not 0 <= smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), given {smoothing}")


def check_directions(directions: str) -> None:
    """Raises ValueError unless ``directions`` says how the two directions are joined."""
    if directions not in ("mean", "sum"):
        raise ValueError(f"directions must be 'mean' or 'sum', given '{directions}'")
