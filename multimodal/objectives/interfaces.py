"""The interfaces of a pair's three choices: candidates, negatives, loss.

Rows are anchors (A), columns are candidates (C). A candidate is a *positive* of an anchor, a
*negative*, or neither (an empty queue slot, a match that is left out). Losses and negatives see one
block of rows with all of its columns, never other ranks, so they cannot depend on how the rows are
cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from multimodal.core.similarity.similarities import COSINE, Similarity
from multimodal.objectives.kernels.tiles import TORCH, Tiles

# What a strategy hands to the loss, and so what a loss must be able to take:
#   drops     0 keeps a negative, -inf drops it
#   weights   any finite log weight per negative
#   estimate  log weights that only make sense summed up in a softmax's denominator
Weighting = Literal["drops", "weights", "estimate"]
Directions = Literal["mean", "sum", "once"]


@dataclass(frozen=True, slots=True)
class Context:
    """What a strategy may know beyond the block of similarities.

    Attributes:
        seed: of the experiment.
        step: the batch's position in the schedule.
        pair: name of the pair.
        direction: ``"image->text"``; the two directions of a pair draw differently.
        scale: scalar, multiplies cosines into logits; 1 / temperature. Carries its gradient.
        embed_dim: D of the embeddings.
        on_host: the scale and the pair's bias (0 without one), where the host has them already.
        similarity: how embeddings are compared.
        tiles: what computes sums over the whole matrix.
    """

    seed: int
    step: int
    pair: str
    direction: str
    scale: Tensor
    embed_dim: int
    on_host: tuple[float, float] | None = None
    similarity: Similarity = COSINE
    tiles: Tiles = TORCH


@runtime_checkable
class Loss(Protocol):
    """Similarities and log weights in, one loss per anchor out.

    Attributes:
        accepts: the kinds of log weights that the formula has a place for.
        directions: ``mean`` or ``sum`` of both directions of a pair, or ``once`` where the formula
            covers the whole matrix by itself.
        default_scale: the logit scale of a pair that gives none.
        default_bias: the logit bias of a pair that gives none; None where there is no bias.
    """

    accepts: ClassVar[frozenset[Weighting]]
    default_scale: ClassVar[float]
    default_bias: ClassVar[float | None]

    @property
    def directions(self) -> Directions:
        """See above."""
        ...

    def __call__(
        self,
        similarities: Tensor,
        scale: Tensor,
        bias: Tensor,
        positives: Tensor,
        log_weights: Tensor,
    ) -> Tensor:
        """The loss of each anchor.

        Args:
            similarities: ``[A, C]`` cosines, float32 or float64.
            scale: scalar; logits are ``scale * similarities + bias``.
            bias: scalar; 0 for losses without a bias.
            positives: ``[A, C]`` bool, at least one True per row.
            log_weights: ``[A, C]``; 0 at positives, -inf at what takes no part, else the log
                weight of a negative.

        Returns:
            ``[A]``. An anchor without negatives yields zero (SigLIP: its positive terms).
        """
        ...


@dataclass(frozen=True)
class SimilarityBlock:
    """Rows of a similarity matrix with all of their columns: what a loss reads.

    Attributes:
        similarities: ``[A, C]`` cosines, float32 or float64.
        scale: scalar; logits are ``scale * similarities + bias``.
        bias: scalar; 0 for losses without a bias.
        positives: ``[A, C]`` bool, at least one True per row.
        log_weights: ``[A, C]``; 0 at positives, -inf at what takes no part, else the log weight of
            a negative.
    """

    similarities: Tensor
    scale: Tensor
    bias: Tensor
    positives: Tensor
    log_weights: Tensor

    @cached_property
    def negatives(self) -> Tensor:
        """``[A, C]`` bool: the candidates that the anchors are pushed away from."""
        return ~self.positives & (self.log_weights > -torch.inf)

    @cached_property
    def weighted_logits(self) -> Tensor:
        """``[A, C]``: ``scale * similarities + log_weights``, as a softmax takes them."""
        return self.scale * self.similarities + self.log_weights


@dataclass(frozen=True)
class BlockLoss(ABC):
    """Base of our losses: one `SimilarityBlock` in, one loss per anchor out."""

    accepts: ClassVar[frozenset[Weighting]] = frozenset({"drops"})
    default_scale: ClassVar[float] = 1 / 0.07
    default_bias: ClassVar[float | None] = None

    def __call__(
        self,
        similarities: Tensor,
        scale: Tensor,
        bias: Tensor,
        positives: Tensor,
        log_weights: Tensor,
    ) -> Tensor:
        """The loss of each anchor ``[A]``; see `Loss`."""
        block = SimilarityBlock(similarities, scale, bias, positives, log_weights)
        return self.per_anchor(block)

    @abstractmethod
    def per_anchor(self, block: SimilarityBlock) -> Tensor:
        """The loss of each anchor ``[A]``."""


@dataclass(frozen=True, kw_only=True)
class TwoWayLoss(BlockLoss):
    """Base of losses that run in both directions of a pair.

    Args:
        directions: ``mean`` of the two directions as in CLIP, or their ``sum`` as in ImageBind.

    Raises:
        ValueError: if ``directions`` is neither.
    """

    directions: Directions = "mean"

    def __post_init__(self) -> None:
        if self.directions not in ("mean", "sum"):
            raise ValueError(f"directions must be 'mean' or 'sum', given '{self.directions}'")


@runtime_checkable
class Negatives(Protocol):
    """Selects or weights an anchor's negatives.

    Random choices are hashes of (context, anchor id, candidate id), ties go to the smaller
    candidate id: neither chunks, ranks nor recomputation change them.
    """

    @property
    def gives(self) -> Weighting:
        """The kind of log weights; must be among the loss's ``accepts``."""
        ...

    def __call__(
        self,
        similarities: Tensor,
        positives: Tensor,
        negatives: Tensor,
        anchor_ids: Tensor,
        candidate_ids: Tensor,
        context: Context,
    ) -> Tensor:
        """Log weights of the negatives.

        Args:
            similarities: ``[A, C]`` cosines.
            positives: ``[A, C]`` bool.
            negatives: ``[A, C]`` bool, what there is to choose from; disjoint from ``positives``.
            anchor_ids: ``[A]`` int64.
            candidate_ids: ``[C]`` int64.
            context: seed, step, pair, direction, scale.

        Returns:
            ``[A, C]``: 0 keeps a negative, -inf drops it, log w reweights it. Only read where
            ``negatives`` is True.
        """
        ...


def logsumexp(values: Tensor, where: Tensor) -> Tensor:
    """Log of the summed exponentials of the entries of each row that ``where`` marks.

    A row without any gives the most negative finite number and a zero gradient; ``-inf`` would make
    the gradient NaN.

    Args:
        values: ``[A, C]``.
        where: ``[A, C]`` bool.

    Returns:
        ``[A]``.
    """
    return values.masked_fill(~where, torch.finfo(values.dtype).min).logsumexp(dim=1)


def masked_mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean of the marked entries of each row ``[A]``; zero for a row without any."""
    return values.masked_fill(~where, 0).sum(dim=1) / where.sum(dim=1).clamp(min=1)


def compatible(
    loss: Any,
    negatives: Any,
    candidates: Any = None,
    gives: str | None = None,
    per_token: bool = False,
    bounded: bool = True,
) -> str | None:
    """Why these choices do not go together; None if they do.

    Args:
        loss: a loss or its class.
        negatives: a strategy or its class.
        candidates: any candidates; those that go round the ranks need SigLIP, in batch, and no
            tokens.
        gives: what the strategy gives, where its class alone cannot say; None: as it says.
        per_token: whether the similarity is of tokens; see `Similarity`.
        bounded: whether its values are from -1 to 1.
    """
    if per_token and _keeps_past(candidates):
        return (
            "a queue keeps one embedding a sample, but similarity=maxsim compares those of its "
            "tokens; take candidates=all_ranks, or similarity=cosine"
        )
    if per_token and getattr(loss, "pooled", False):
        return f"{_name(loss)} compares pooled embeddings with a teacher's: take similarity=cosine"
    for choice in (loss, negatives):
        if not bounded and getattr(choice, "needs_cosines", False):
            return (
                f"{_name(choice)} reads similarities from -1 to 1, and a sum over tokens leaves "
                "them; take similarity.reduction=mean"
            )
    in_batch = negatives is None or _name(negatives) == "InBatch"
    sigmoid = loss is None or _name(getattr(loss, "loss", loss)) == "SigLIP"
    if getattr(candidates, "passes", False) and (per_token or not (in_batch and sigmoid)):
        return (
            f"candidates {_name(candidates)} with loss {_name(loss)} and negatives "
            f"{_name(negatives)}: only loss=siglip with negatives=in_batch, of cosines, goes "
            "round the ranks; take candidates=all_ranks"
        )
    gives = getattr(negatives, "gives", None) if gives is None else gives
    accepts = getattr(loss, "accepts", None)
    if not isinstance(gives, str) or not isinstance(accepts, Set) or gives in accepts:
        return None
    reasons = {
        "weights": "weights its negatives, but a margin loss has no weights, nor has a target. It "
        "needs a softmax or the sigmoid loss (info_nce, dcl, sup_con, soft_target, siglip)",
        "estimate": "corrects the denominator of a softmax, which this loss does not have. It "
        "needs a softmax loss (info_nce, dcl, sup_con, soft_target)",
    }
    return f"negatives {_name(negatives)} with loss {_name(loss)}: {reasons[gives]}"


def _keeps_past(candidates: Any) -> bool:
    size = getattr(candidates, "size", 0)
    return isinstance(size, int) and size > 0


def _name(choice: Any) -> str:
    return choice.__name__ if isinstance(choice, type) else type(choice).__name__
