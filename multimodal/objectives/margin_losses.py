"""Losses that ask the positive to lead by a margin. Margins are in cosine; nothing is exponential.

Where an anchor has several positives, the least similar one has to lead (batch hard, Hermans et al.
2017, Eq. 5); the others then lead by more. The logit scale has no part in these losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multimodal.objectives.contract import Directions, Weighting, check_directions


@dataclass(frozen=True)
class Triplet:
    """Triplet loss (Schroff et al. 2015, Sec. 3.1), with cosines in place of squared distances.

    ``max(0, margin - s_p + s_n)``, averaged over the anchor's negatives that violate the margin:
    averaged over all of them it would fade as training gets them right (Hermans et al. 2017).

    Args:
        margin: at least 0, in cosine; squared distances between unit vectors are twice that.
        directions: ``mean`` or ``sum`` of the two directions.
    """

    margin: float = 0.2
    directions: Directions = "mean"

    accepts: ClassVar[frozenset[Weighting]] = frozenset({"drops"})
    default_scale: ClassVar[float] = 1 / 0.07
    default_bias: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        check_margin(self.margin)
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
        violations_AC = _violations(similarities, positives, log_weights, self.margin)
        return violations_AC.sum(dim=1) / (violations_AC > 0).sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class Hinge:
    """Hinge ranking loss: the sum of violations (Kiros et al. 2014), or the worst (VSE++).

    ``sum_n max(0, margin - s_p + s_n)``, or ``max_n`` (Faghri et al. 2018, Sec. 2).

    Args:
        margin: at least 0, in cosine.
        hardest: only the most similar negative counts.
        directions: ``sum`` of the two directions as in VSE++, or their ``mean``.
    """

    margin: float = 0.2
    hardest: bool = False
    directions: Directions = "sum"

    accepts: ClassVar[frozenset[Weighting]] = frozenset({"drops"})
    default_scale: ClassVar[float] = 1 / 0.07
    default_bias: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        check_margin(self.margin)
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
        violations_AC = _violations(similarities, positives, log_weights, self.margin)
        return violations_AC.amax(dim=1) if self.hardest else violations_AC.sum(dim=1)


def _violations(
    similarities: Tensor, positives: Tensor, log_weights: Tensor, margin: float
) -> Tensor:
    """By how much each negative comes too close ``[A, C]``; 0 where there is no negative."""
    positive_A = similarities.masked_fill(~positives, torch.inf).amin(dim=1)
    gaps_AC = (margin - positive_A[:, None] + similarities).relu()
    negatives = ~positives & (log_weights > -torch.inf)
    # 0 x similarity keeps the graph and lets NaN through where a row has no negative
    return gaps_AC.where(negatives, 0 * positive_A[:, None])


def check_margin(margin: float) -> None:
    """Raises ValueError below 0."""
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, given {margin}")
