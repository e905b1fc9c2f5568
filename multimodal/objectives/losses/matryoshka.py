"""Matryoshka: any loss on the first numbers of an embedding as well as on all of them.

The towers learn to put what matters first, so that an embedding may be cut (Kusupati et al. 2022,
arXiv:2205.13147, Section 3). Each prefix is brought to unit norm again, and all share the pair's
temperature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from multimodal.objectives.gathered_batch import GatheredBatch
from multimodal.objectives.interfaces import Directions, Loss, Weighting


@dataclass(frozen=True)
class Matryoshka:
    """The weighted mean of a loss over prefixes of the embeddings.

    A pair computes every prefix as it computes the loss by itself: the same kernel, candidates and
    ranks. Negatives are chosen anew for each, among the similarities of that prefix.

    Args:
        loss: any loss.
        dims: widths of the prefixes, ascending; the last is the embeddings' own.
        weights: of the widths, at least 0, not all 0; None: equal ones.

    Raises:
        ValueError: if the widths do not ascend from 1, or there are not as many weights.
    """

    loss: Loss
    dims: Sequence[int]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.loss, Matryoshka):
            raise ValueError("matryoshka: the loss has prefixes already")
        if reason := wrong_dims(self.dims, self.weights):
            raise ValueError(f"matryoshka: {reason}")

    @property
    def accepts(self) -> frozenset[Weighting]:
        """Of the loss."""
        return self.loss.accepts

    @property
    def default_scale(self) -> float:
        """Of the loss."""
        return self.loss.default_scale

    @property
    def default_bias(self) -> float | None:
        """Of the loss."""
        return self.loss.default_bias

    @property
    def directions(self) -> Directions:
        """Of the loss."""
        return self.loss.directions

    def __call__(
        self,
        similarities: Tensor,
        scale: Tensor,
        bias: Tensor,
        positives: Tensor,
        log_weights: Tensor,
    ) -> Tensor:
        """The loss of the whole width alone: similarities say nothing of prefixes."""
        return self.loss(similarities, scale, bias, positives, log_weights)

    def shares(self) -> Iterator[tuple[int, float]]:
        """Each width with its share of the mean; the shares sum to 1."""
        weights = self.weights or [1.0] * len(self.dims)
        for dim, weight in zip(self.dims, weights, strict=True):
            yield dim, weight / sum(weights)


def wrong_dims(dims: Sequence[int], weights: Sequence[float] | None) -> str | None:
    """Why these widths and weights cannot be used; None if they can."""
    given = list(dims)
    if not given or given[0] < 1 or given != sorted(set(given)):
        return f"dims must ascend from 1 or more, given {given}"
    if weights is None:
        return None
    if len(weights) != len(given):
        return f"weights has {len(weights)} numbers for {len(given)} dims"
    if not all(math.isfinite(each) and each >= 0 for each in weights) or not sum(weights):
        return f"weights must be at least 0, and not all 0, given {list(weights)}"
    return None


def prefix(embeddings: Tensor, dim: int) -> Tensor:
    """The first ``dim`` numbers of ``[..., D]``, of unit norm again; all of them unchanged."""
    if dim == embeddings.shape[-1]:
        return embeddings
    return functional.normalize(embeddings[..., :dim], dim=-1)


def cut(gathered: GatheredBatch, modalities: Sequence[str], dim: int) -> GatheredBatch:
    """A batch with the prefixes of these modalities alone."""
    embeddings = {name: prefix(gathered.side(name), dim) for name in dict.fromkeys(modalities)}
    listed = {
        name: replace(rows, embeddings=prefix(rows.embeddings, dim))
        for name, rows in gathered.listed.items()
        if name in embeddings
    }
    return replace(gathered, embeddings=embeddings, listed=listed)
