"""Strategies that select some of an anchor's negatives and drop the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from multimodal.core.bounds import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Bounds
from multimodal.core.hashing import stable_hash
from multimodal.core.tensor_hashing import pair_hash
from multimodal.objectives.interfaces import Context, Negatives, Weighting
from multimodal.objectives.negatives.sampling import top
from multimodal.objectives.negatives.warmup import WarmsUp


@dataclass(frozen=True)
class InBatch:
    """All of them: every other sample among the candidates (Chen et al. 2020; CLIP)."""

    gives: ClassVar[Weighting] = "drops"

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
        return torch.zeros_like(similarities)


@dataclass(frozen=True)
class Random(WarmsUp):
    """``k`` random ones, drawn for every anchor, step and direction.

    Args:
        k: at least 1; all of them where there are no more.
    """

    k: Annotated[int, AT_LEAST_1] = 64

    gives: ClassVar[Weighting] = "drops"

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
        draws = pair_hash(anchor_ids, candidate_ids, _key(context))
        return _keep(top(draws, negatives, self.k, candidate_ids), similarities)


@dataclass(frozen=True)
class Hard(WarmsUp):
    """The ``k`` hardest ones, optionally after skipping the very hardest.

    The hardest are often false negatives: pictures of the same thing, captions that would fit
    (Xuan et al. 2020; NV-Retriever, Moreira et al. 2024).

    Args:
        k: a whole number of them, at least 1; or a share of the anchor's negatives, between 0 and
            1, rounded up.
        skip: how many of the hardest to leave out first; an anchor with no more has none left.
    """

    k: Annotated[int, AT_LEAST_1] | Annotated[float, Bounds(above=0, below=1)] = 16
    skip: Annotated[int, AT_LEAST_0] = 0

    gives: ClassVar[Weighting] = "drops"

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) and not 0 < self.k < 1:
            raise ValueError(f"k must be a whole number or a share between 0 and 1, given {self.k}")
        super().__post_init__()

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
        similarities = similarities.detach()
        count: int | Tensor = self.k + self.skip if isinstance(self.k, int) else 0
        if not isinstance(self.k, int):
            share_A = self.k * negatives.sum(dim=1, dtype=torch.float64)
            count = (share_A - 1e-9).ceil().long() + self.skip  # 0.07 x 100 is 7, not 8
        keep = top(similarities, negatives, count, candidate_ids)
        if self.skip:
            keep &= ~top(similarities, negatives, self.skip, candidate_ids)
        return _keep(keep, similarities)


@dataclass(frozen=True)
class SemiHard(WarmsUp):
    """Those less similar than the positive, but by less than ``margin`` (Schroff et al. 2015,
    Sec. 3.2).

    With several positives, the least similar one counts, as in the margin losses. An anchor without
    such a negative takes the most similar one below its positive; if none is below, the least
    similar of all (as widespread implementations do).

    Args:
        margin: above 0, in cosine.
    """

    margin: Annotated[float, ABOVE_0] = 0.2

    gives: ClassVar[Weighting] = "drops"

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
        similarities = similarities.detach()
        positive_A = similarities.masked_fill(~positives, torch.inf).amin(dim=1)[:, None]
        below = negatives & (similarities < positive_A)
        within = below & (similarities > positive_A - self.margin)
        nearest_below = top(similarities, below, 1, candidate_ids)
        easiest = top(-similarities, negatives, 1, candidate_ids)
        fall_back = nearest_below.where(below.any(dim=1)[:, None], easiest)
        return _keep(within.where(within.any(dim=1)[:, None], fall_back), similarities)


@dataclass(frozen=True)
class DistanceWeighted(WarmsUp):
    """``k`` sampled uniformly over distances (Wu et al. 2017, Sec. 4.1).

    Between random points of the sphere in D dimensions, almost all distances are near sqrt(2). A
    negative's chance is ``min(lambda, 1 / q(distance))``, q being that density, so that near and
    far ones come up too. Drawn without replacement.

    Args:
        k: at least 1; all of them where there are no more.
        cutoff: a distance in (0, sqrt(2)); lambda is 1 / q there, so that nearer ones, whose
            gradients are noise, are not more likely.
    """

    k: Annotated[int, AT_LEAST_1] = 16
    cutoff: Annotated[float, Bounds(above=0, below=math.sqrt(2))] = 0.5

    gives: ClassVar[Weighting] = "drops"
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
        similarities = similarities.detach()
        limit = similarities.new_tensor(1 - self.cutoff**2 / 2)
        log_density_AC = _log_density(similarities, context.embed_dim)
        log_chance_AC = -log_density_AC.clamp(min=_log_density(limit, context.embed_dim))
        draws = pair_hash(anchor_ids, candidate_ids, _key(context))
        uniform_AC = (draws.double() + 0.5) / 2**63
        # the k largest of log p + Gumbel noise are k draws without replacement (Vieira 2014)
        gumbel_AC = -(-uniform_AC.log()).log()
        return _keep(top(log_chance_AC + gumbel_AC, negatives, self.k, candidate_ids), similarities)


@dataclass(frozen=True)
class Filtered(WarmsUp):
    """Drops likely false negatives, and passes the rest to another strategy.

    Negatives at least as similar as ``threshold`` are taken for unlabelled positives (Huynh et al.
    2022). Equal captions or labels need no threshold: give the source a ``positive_key``, and the
    pair ``equal_keys: ignored`` if they are not to be positives either.

    Args:
        threshold: a cosine in (-1, 1].
        then: chooses among the remaining negatives.

    Raises:
        ValueError: if ``then`` has a warm-up: this strategy's own includes it.
    """

    threshold: Annotated[float, Bounds(above=-1, most=1, noun="a cosine")]
    then: Negatives

    needs_cosines: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if steps := getattr(self.then, "warmup_steps", 0):
            raise ValueError(
                f"then.warmup_steps={steps}: what is filtered warms up as a whole; set the "
                "filter's warmup_steps, and 0 in then"
            )

    @property
    def gives(self) -> Weighting:
        """What the other strategy gives."""
        return self.then.gives

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
        trusted = negatives & (similarities < self.threshold)
        log_weights = self.then(
            similarities, positives, trusted, anchor_ids, candidate_ids, context
        )
        return log_weights.masked_fill(~trusted, -torch.inf)


def _keep(chosen: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).masked_fill(~chosen, -torch.inf)


def _key(context: Context) -> int:
    return stable_hash(context.seed, context.step, context.pair, context.direction)


def _log_density(cosines: Tensor, dim: int) -> Tensor:
    """Log density, up to a constant, of the distance between random unit vectors (Wu et al. 2017).

    ``d^(n-2) (1 - d^2/4)^((n-3)/2)`` with ``d^2 = 2 - 2 cosine``.
    """
    tiny = torch.finfo(cosines.dtype).tiny
    squared = (2 - 2 * cosines).clamp(min=tiny)
    return (dim - 2) / 2 * squared.log() + (dim - 3) / 2 * (1 - squared / 4).clamp(min=tiny).log()
