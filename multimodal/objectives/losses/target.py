"""Target losses: each anchor is pulled to the other side of its own sample; nothing is pushed away.

For self-distillation, the other side is what a frozen language model makes of the sample's caption,
which the anchor's encoder learns to say as well (Omni-Embed and its kin). Embeddings are of unit
norm.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from multimodal.objectives.interfaces import BlockLoss, Directions, SimilarityBlock, masked_mean


@dataclass(frozen=True)
class TargetLoss(BlockLoss):
    """Base of losses of an anchor's own positives alone.

    A pair computes it of each sample and its own target, row by row, without a matrix; equal
    positive keys, candidates and negatives have no part in it.
    """

    directions: ClassVar[Directions] = "once"
    needs_cosines: ClassVar[bool] = True

    @abstractmethod
    def per_cosine(self, cosines: Tensor) -> Tensor:
        """The loss of each cosine with a target, of any shape."""

    def per_anchor(self, block: SimilarityBlock) -> Tensor:
        """The loss of each anchor ``[A]``: the mean over its positives."""
        return masked_mean(self.per_cosine(block.similarities), block.positives)


@dataclass(frozen=True)
class CosineTarget(TargetLoss):
    """``1 - s``."""

    def per_cosine(self, cosines: Tensor) -> Tensor:
        """The loss of each cosine."""
        return 1 - cosines


@dataclass(frozen=True)
class SquaredTarget(TargetLoss):
    """The squared distance of the two vectors; of unit norm, it is ``2 - 2 s``.

    Divided by D it would be the mean squared error of their values; the pair's weight scales it.
    """

    def per_cosine(self, cosines: Tensor) -> Tensor:
        """The loss of each cosine."""
        return 2 - 2 * cosines
