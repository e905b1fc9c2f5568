"""Strategies that weight an anchor's negatives; the weights carry gradients, as published."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from multimodal.core.bounds import AT_LEAST_0, SHARE
from multimodal.objectives.interfaces import Context, Weighting, logsumexp
from multimodal.objectives.negatives.warmup import WarmsUp


@dataclass(frozen=True)
class Reweighted(WarmsUp):
    """Harder negatives count more (Robinson et al. 2021, Eq. 4 without debiasing).

    ``w_n`` proportional to ``exp(beta l_n)``, with mean 1 over the anchor's negatives.

    Args:
        beta: at least 0; 0 is in_batch.
    """

    beta: Annotated[float, AT_LEAST_0] = 0.5

    gives: ClassVar[Weighting] = "weights"

    def __call__(
        self,
        similarities: Tensor,
        positives: Tensor,
        negatives: Tensor,
        anchor_ids: Tensor,
        candidate_ids: Tensor,
        context: Context,
    ) -> Tensor:
        """Log weights ``[A, C]``; see `Negatives`."""
        return hardness_log_weights(context.scale * similarities, negatives, self.beta)


@dataclass(frozen=True)
class Debiased(WarmsUp):
    """Corrects the denominator for unlabelled positives (Chuang et al. 2020, Eq. 7 and 8).

    If a share ``tau_plus`` of all samples are positives, the mean over true negatives is estimated
    as ``g = (mean_n exp(l_n) - tau_plus mean_p exp(l_p)) / (1 - tau_plus)``, at least
    ``exp(-scale)``, the smallest it can be; the negatives are scaled so that they sum up to N g.

    Args:
        tau_plus: in [0, 1), the chance that a candidate is an unlabelled positive.
        beta: at least 0; above 0 harder negatives count more as well (Robinson et al. 2021, Eq. 4).
    """

    tau_plus: Annotated[float, SHARE] = 0.1
    beta: Annotated[float, AT_LEAST_0] = 0.0

    gives: ClassVar[Weighting] = "estimate"
    needs_cosines: ClassVar[bool] = True

    def __call__(
        self,
        similarities: Tensor,
        positives: Tensor,
        negatives: Tensor,
        anchor_ids: Tensor,
        candidate_ids: Tensor,
        context: Context,
    ) -> Tensor:
        """Log weights ``[A, C]``; see `Negatives`."""
        logits_AC = context.scale * similarities
        log_weights = hardness_log_weights(logits_AC, negatives, self.beta)
        total_A = logsumexp(logits_AC + log_weights, negatives)
        log_count_A = negatives.sum(dim=1).clamp(min=1).to(logits_AC.dtype).log()
        positive_A = logsumexp(logits_AC, positives) - positives.sum(dim=1).log()
        mean_A = total_A - log_count_A
        # exponentials relative to the largest, which no scale can make overflow
        shift_A = torch.maximum(mean_A, positive_A).detach()
        gap_A = (mean_A - shift_A).exp() - self.tau_plus * (positive_A - shift_A).exp()
        above_zero = gap_A > 0
        log_gap_A = gap_A.where(above_zero, 1).log() - math.log1p(-self.tau_plus) + shift_A
        estimate_A = torch.maximum(log_gap_A, -context.scale).where(above_zero, -context.scale)
        correction_A = estimate_A + log_count_A - total_A
        correction_A = correction_A.where(negatives.any(dim=1), 0)
        return log_weights + correction_A[:, None]


def hardness_log_weights(logits_AC: Tensor, negatives: Tensor, beta: float) -> Tensor:
    """``beta l_n``, shifted so that the weights' mean over the row's negatives is 1; ``[A, C]``."""
    scaled_AC = beta * logits_AC
    count_A = negatives.sum(dim=1).clamp(min=1).to(logits_AC.dtype)
    mean_A = logsumexp(scaled_AC, negatives) - count_A.log()
    return scaled_AC - mean_A[:, None]
