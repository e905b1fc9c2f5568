"""Losses with a softmax over the candidates. Log weights are added to the negatives' logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from multimodal.core.bounds import ABOVE_0, SHARE, check_bounds
from multimodal.objectives.interfaces import (
    SimilarityBlock,
    TwoWayLoss,
    Weighting,
    logsumexp,
    masked_mean,
)


@dataclass(frozen=True)
class SoftmaxLoss(TwoWayLoss):
    """Base of losses whose denominator has a place for any log weight."""

    accepts: ClassVar[frozenset[Weighting]] = frozenset({"drops", "weights", "estimate"})


@dataclass(frozen=True)
class InfoNCE(SoftmaxLoss):
    """InfoNCE (van den Oord et al. 2018, Eq. 4), symmetric as in CLIP (Radford et al. 2021).

    ``-log(exp(l_p) / (exp(l_p) + sum_n w_n exp(l_n)))``. With several positives, the mean over
    them, each against the negatives alone: the other positives are neither pushed away nor in the
    denominator (SINCERE, Feeney & Hughes 2023).

    Args:
        label_smoothing: in [0, 1); this share of the target is spread evenly over the positive and
            its negatives (Szegedy et al. 2016).
        directions: ``mean`` of the two directions as in CLIP, or their ``sum`` as in ImageBind.
    """

    label_smoothing: Annotated[float, SHARE] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self)

    def per_anchor(self, block: SimilarityBlock) -> Tensor:
        """The loss of each anchor ``[A]``."""
        logits_AC, negatives = block.weighted_logits, block.negatives
        losses_AC = self.from_logs(logits_AC, logsumexp(logits_AC, negatives)[:, None])
        if self.label_smoothing:
            # ... + smoothing x (l_p - the mean of l over the positive and its negatives)
            count_A = negatives.sum(dim=1)
            total_A = logits_AC.masked_fill(~negatives, 0).sum(dim=1)
            gaps_AC = (count_A[:, None] * logits_AC - total_A[:, None]) / (1 + count_A[:, None])
            losses_AC = losses_AC + self.label_smoothing * gaps_AC
        return masked_mean(losses_AC, block.positives)

    @staticmethod
    def from_logs(positives: Tensor, negatives: Tensor) -> Tensor:
        """The loss of positives' logits against the logsumexp of their anchors' negatives."""
        # log(1 + exp(n - p)), exact at both ends
        return -F.logsigmoid(positives - negatives)


@dataclass(frozen=True)
class DCL(SoftmaxLoss):
    """Decoupled contrastive loss (Yeh et al. 2022): no positive in the denominator.

    ``-l_p + log sum_n w_n exp(l_n)``, the mean over the positives. The positive's own share no
    longer damps the gradient, which helps small batches.

    Args:
        directions: ``mean`` or ``sum`` of the two directions.
    """

    def per_anchor(self, block: SimilarityBlock) -> Tensor:
        """The loss of each anchor ``[A]``."""
        logits_AC, negatives = block.weighted_logits, block.negatives
        losses_AC = self.from_logs(logits_AC, logsumexp(logits_AC, negatives)[:, None])
        return masked_mean(losses_AC, block.positives)

    @staticmethod
    def from_logs(positives: Tensor, negatives: Tensor) -> Tensor:
        """The loss of positives' logits against the logsumexp of their anchors' negatives."""
        some = negatives > torch.finfo(negatives.dtype).min / 2
        # 0 x logit keeps the graph, and lets NaN through
        return (negatives - positives).where(some, 0 * positives)


@dataclass(frozen=True)
class SupCon(SoftmaxLoss):
    """Supervised contrastive loss, outer form (Khosla et al. 2020, Eq. 2).

    ``-1/|P| sum_p log(exp(l_p) / (sum_P exp(l) + sum_n w_n exp(l_n)))``: a cross-entropy whose
    target is even over the positives. Unlike in `InfoNCE`, the positives share one denominator and
    so compete.

    Args:
        label_smoothing: in [0, 1); this share of the target is spread evenly over positives and
            negatives.
        directions: ``mean`` or ``sum`` of the two directions.
    """

    label_smoothing: Annotated[float, SHARE] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self)

    def per_anchor(self, block: SimilarityBlock) -> Tensor:
        """The loss of each anchor ``[A]``."""
        target_A = masked_mean(block.weighted_logits, block.positives)
        return _cross_entropy(block, target_A, self.label_smoothing)


@dataclass(frozen=True)
class SoftTarget(SoftmaxLoss):
    """Cross-entropy whose target favours the positives that are already close.

    As `SupCon`, with target ``softmax(similarity / target_temperature)`` over the positives, held
    constant. Even for a high temperature, which is SupCon; at the temperature of the logits it has
    the gradient of MIL-NCE (Miech et al. 2020, Eq. 1), which forgives positives that are wrong.

    Args:
        target_temperature: above 0, in cosine; lower trusts the closest positive more.
        label_smoothing: in [0, 1); this share of the target is spread evenly over positives and
            negatives.
        directions: ``mean`` or ``sum`` of the two directions.
    """

    target_temperature: Annotated[float, ABOVE_0] = 0.1
    label_smoothing: Annotated[float, SHARE] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self)

    def per_anchor(self, block: SimilarityBlock) -> Tensor:
        """The loss of each anchor ``[A]``."""
        others = ~block.positives
        closeness_AC = block.similarities.detach() / self.target_temperature
        targets_AC = closeness_AC.masked_fill(others, -torch.inf).softmax(dim=1)
        target_A = (targets_AC * block.weighted_logits.masked_fill(others, 0)).sum(dim=1)
        return _cross_entropy(block, target_A, self.label_smoothing)


def _cross_entropy(block: SimilarityBlock, target_A: Tensor, smoothing: float) -> Tensor:
    """Log of the denominator minus the logit expected under the target, ``target_A``."""
    logits_AC, takes_part = block.weighted_logits, block.log_weights > -torch.inf
    if smoothing:
        target_A = torch.lerp(target_A, masked_mean(logits_AC, takes_part), smoothing)
    return logsumexp(logits_AC, takes_part) - target_A
