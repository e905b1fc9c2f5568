"""Diagnostics of an embedding space: alignment, uniformity, modality gap, effective rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_CELLS = 2**22


@dataclass(frozen=True, slots=True)
class PairDiagnostics:
    """Two modalities of one set.

    Attributes:
        alignment: mean squared distance of the embeddings of one sample (`alignment`), 0 to 4.
        gap: distance between the modalities' mean embeddings (`modality_gap`), 0 to 2.
        temperature: of the pair in training, 1 / logit scale; None where it was not trained.
    """

    alignment: float
    gap: float
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class SpaceDiagnostics:
    """One modality of one set.

    Attributes:
        uniformity: log of the mean Gaussian potential (`uniformity`), -4 to 0, low is spread out.
        effective_rank: effectively used dimensions (`effective_rank`), 1 to D.
    """

    uniformity: float
    effective_rank: float


def alignment(a: Tensor, b: Tensor) -> float:
    """Mean squared distance between the two embeddings of a sample.

    Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere", ICML 2020, section 4.2, with alpha = 2.

    Args:
        a: ``[N, D]``, of unit norm.
        b: ``[N, D]``, of the same samples.
    """
    return float((a.double() - b.double()).square().sum(dim=1).mean())


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """Log of the mean of exp(-t |x - y|^2) over all pairs of different samples (same paper).

    Args:
        x: ``[N, D]``, of unit norm.
        t: of the Gaussian.

    Returns:
        At most 0, reached when all embeddings are one; NaN for fewer than two samples.
    """
    n = len(x)
    if n < 2:
        return math.nan
    x = x.double()
    squares = x.square().sum(dim=1)
    size = max(1, _CELLS // n)
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, n, size):
        rows = x[start : start + size]
        distances = squares[start : start + size, None] + squares - 2 * rows @ x.T
        potential = torch.exp(-t * distances.clamp_min(0))
        total += potential.sum() - potential.diagonal(offset=start).sum()
    return float(torch.log(total / (n * (n - 1))))


def modality_gap(a: Tensor, b: Tensor) -> float:
    """Distance between the mean embeddings of two modalities.

    Liang et al., "Mind the Gap: Understanding the Modality Gap in Multi-modal Contrastive
    Representation Learning", NeurIPS 2022, section 2.
    """
    return float((a.double().mean(dim=0) - b.double().mean(dim=0)).norm())


def effective_rank(x: Tensor) -> float:
    """Exponential of the entropy of the singular values, normalised to a distribution.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.

    Args:
        x: ``[N, D]``.

    Returns:
        From 1 (all on one line) to min(N, D).

    Raises:
        ValueError: if all of ``x`` is zero.
    """
    # Singular values by the smaller Gram matrix would square the condition; N is bounded instead.
    values = torch.linalg.svdvals(x.double())
    total = values.sum()
    if total <= 0:
        raise ValueError("the effective rank of embeddings that are all zero is not defined")
    shares = values / total
    return float(torch.exp(torch.special.entr(shares).sum()))
