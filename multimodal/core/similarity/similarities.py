"""The similarity of a model: the cosine of two vectors, or late interaction of their tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from multimodal.core.similarity.max_similarity import max_similarity, paired_max_similarity
from multimodal.core.similarity.tokens import real_tokens


class Comparison(ABC):
    """Compares rows of one modality with columns of another."""

    @abstractmethod
    def matrix(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Similarities ``[A, C]``, with gradients to both."""

    @abstractmethod
    def paired(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Similarities of each row and its own column ``[N]``."""

    def kept(self, rows: Tensor, columns: Tensor) -> int:
        """Numbers that are kept of each entry of a matrix for its gradient."""
        return 1


class Similarity(ABC):
    """How embeddings are compared, and so what the towers give."""

    per_token: ClassVar[bool]
    """Whether towers give an embedding of every token ``[B, T, D]``, or of the whole ``[B, D]``."""

    @property
    def bounded(self) -> bool:
        """Whether all values are from -1 to 1, as cosines are."""
        return True

    @abstractmethod
    def between(self, rows: str, columns: str) -> Comparison:
        """Compares embeddings of modality ``rows`` with those of modality ``columns``."""


@dataclass(frozen=True)
class Cosine(Similarity):
    """The inner product of two embeddings of unit norm."""

    per_token: ClassVar[bool] = False

    def between(self, rows: str, columns: str) -> Comparison:
        """See `Similarity`."""
        return _CosineComparison()


COSINE = Cosine()


@dataclass(frozen=True)
class MaxSim(Similarity):
    """Late interaction: each token of a query with the most similar token of a document.

    ``s(q, d) = sum_t max_u cos(q_t, d_u)`` (ColBERT, Khattab & Zaharia 2020, arXiv:2004.12832;
    ColPali, Faysse et al. 2024, arXiv:2407.01449), or its mean over the query's tokens (FILIP, Yao
    et al. 2022, arXiv:2111.07783, Eq. 4). It is not symmetric.

    Args:
        query: the modality that is the query wherever it takes part, in both directions of a pair,
            as in ColBERT and ColPali. None, and wherever it takes no part: the anchor of each
            direction is the query, as in FILIP.
        reduction: over the query's tokens: their ``mean``, which stays from -1 to 1, or ``sum``.

    Raises:
        ValueError: if ``reduction`` is neither.
    """

    query: str | None = None
    reduction: Literal["mean", "sum"] = "mean"

    per_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum"):
            raise ValueError(
                f"similarity.reduction must be 'mean' or 'sum', given {self.reduction!r}"
            )

    @property
    def bounded(self) -> bool:
        """True of the mean."""
        return self.reduction == "mean"

    def between(self, rows: str, columns: str) -> Comparison:
        """See `Similarity`."""
        return _MaxSimComparison(self.asks(rows, columns), self.reduction == "mean")

    def asks(self, rows: str, columns: str) -> bool:
        """Whether modality ``rows`` is the query, and ``columns`` the document."""
        return self.query != columns or self.query == rows


class _CosineComparison(Comparison):
    def matrix(self, rows: Tensor, columns: Tensor) -> Tensor:
        return rows @ columns.T

    def paired(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (rows * columns).sum(dim=1)


@dataclass(frozen=True)
class _MaxSimComparison(Comparison):
    rows_ask: bool
    mean: bool

    def matrix(self, rows: Tensor, columns: Tensor) -> Tensor:
        queries, documents = (rows, columns) if self.rows_ask else (columns, rows)
        scores = max_similarity(queries, documents)
        if self.mean:
            scores = scores / _count(queries)[:, None]
        return scores if self.rows_ask else scores.T

    def paired(self, rows: Tensor, columns: Tensor) -> Tensor:
        queries, documents = (rows, columns) if self.rows_ask else (columns, rows)
        scores = paired_max_similarity(queries, documents)
        return scores / _count(queries) if self.mean else scores

    def kept(self, rows: Tensor, columns: Tensor) -> int:
        return (rows if self.rows_ask else columns).shape[1]


def _count(queries: Tensor) -> Tensor:
    """Tokens of each query ``[Q]``, at least 1."""
    return real_tokens(queries).sum(dim=1).clamp(min=1)
