"""The pairwise sigmoid loss: every entry of the matrix is a binary classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from multimodal.objectives.interfaces import BlockLoss, Directions, SimilarityBlock, Weighting


@dataclass(frozen=True)
class SigLIP(BlockLoss):
    """Pairwise sigmoid loss (Zhai et al. 2023), with a logit bias beside the scale.

    Per anchor ``sum_p -log sigmoid(l_p) + sum_n w_n (-log sigmoid(-l_n))``. It covers the matrix
    once, so there is one direction. Every positive is a term, and weights multiply the negatives'.
    """

    directions: ClassVar[Directions] = "once"
    accepts: ClassVar[frozenset[Weighting]] = frozenset({"drops", "weights"})
    default_scale: ClassVar[float] = 10.0
    default_bias: ClassVar[float | None] = -10.0

    def per_anchor(self, block: SimilarityBlock) -> Tensor:
        """The loss of each anchor ``[A]``."""
        logits_AC = block.scale * block.similarities + block.bias
        signed_AC = logits_AC.where(block.positives, -logits_AC)
        return -(block.log_weights.exp() * F.logsigmoid(signed_AC)).sum(dim=1)
