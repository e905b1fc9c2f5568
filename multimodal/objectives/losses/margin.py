"""Margin losses. Margins are in cosine similarity; no temperature.

Where an anchor has several positives, the least similar one has to lead (batch hard, Hermans et al.
2017, Eq. 5); the others then lead by more. The logit scale has no part in these losses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from multimodal.core.bounds import AT_LEAST_0, check_bounds
from multimodal.objectives.interfaces import Directions, SimilarityBlock, TwoWayLoss


@dataclass(frozen=True)
class MarginLoss(TwoWayLoss):
    """Base of losses of violated margins.

    Args:
        margin: at least 0, in cosine.

    Raises:
        ValueError: if the margin is below 0.
    """

    margin: Annotated[float, AT_LEAST_0] = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self)

    def violations(self, block: SimilarityBlock) -> Tensor:
        """By how much each negative comes too close ``[A, C]``; 0 where there is no negative."""
        positive_A = block.similarities.masked_fill(~block.positives, torch.inf).amin(dim=1)
        gaps_AC = (self.margin - positive_A[:, None] + block.similarities).relu()
        # 0 x similarity keeps the graph and lets NaN through where a row has no negative
        return gaps_AC.where(block.negatives, 0 * positive_A[:, None])


@dataclass(frozen=True)
class Triplet(MarginLoss):
    """Triplet loss (Schroff et al. 2015, Sec. 3.1), with cosines in place of squared distances.

    ``max(0, margin - s_p + s_n)``, averaged over the anchor's negatives that violate the margin:
    averaged over all of them it would fade as training gets them right (Hermans et al. 2017).

    Args:
        margin: at least 0, in cosine; squared distances between unit vectors are twice that.
        directions: ``mean`` or ``sum`` of the two directions.
    """

    def per_anchor(self, block: SimilarityBlock) -> Tensor:
        """The loss of each anchor ``[A]``."""
        violations_AC = self.violations(block)
        return violations_AC.sum(dim=1) / (violations_AC > 0).sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class Hinge(MarginLoss):
    """Hinge ranking loss: the sum of violations (Kiros et al. 2014), or the worst (VSE++).

    ``sum_n max(0, margin - s_p + s_n)``, or ``max_n`` (Faghri et al. 2018, Sec. 2).

    Args:
        margin: at least 0, in cosine.
        hardest: only the most similar negative counts.
        directions: ``sum`` of the two directions as in VSE++, or their ``mean``.
    """

    hardest: bool = False
    directions: Directions = field(default="sum", kw_only=True)

    def per_anchor(self, block: SimilarityBlock) -> Tensor:
        """The loss of each anchor ``[A]``."""
        violations_AC = self.violations(block)
        return violations_AC.amax(dim=1) if self.hardest else violations_AC.sum(dim=1)
