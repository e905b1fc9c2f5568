"""Affinity losses: a student's similarities are pulled to those of its teacher.

Distillation of relations. The student's matrix of similarities over a batch, of the pair's two
sides, is compared row by row with the teacher's of the same samples; labels, positives and
negatives have no part in it. Teacher and student may differ in their widths: only similarities are
compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from multimodal.core.bounds import ABOVE_0, check_bounds
from multimodal.core.names.modalities import teacher_of
from multimodal.objectives.gathered_batch import GatheredBatch
from multimodal.objectives.interfaces import Directions, Weighting
from multimodal.objectives.kernels.blockwise import BLOCK_ENTRIES, Direction


@dataclass(frozen=True)
class AffinityLoss(ABC):
    """Base of losses that compare a student's rows of similarities with its teacher's.

    A pair of ``image`` and ``text`` is compared with ``teacher_image`` and ``teacher_text``; a side
    that is a teacher's already is its own teacher, so that a pair of ``image`` and
    ``teacher_image`` compares the student's places among the teacher's (SEED, Fang et al. 2021,
    arXiv:2101.04731). All samples of the pair's candidates, this rank's or all ranks', are columns;
    a queue's past embeddings are none.
    """

    accepts: ClassVar[frozenset[Weighting]] = frozenset({"drops"})
    default_scale: ClassVar[float] = 1 / 0.07
    default_bias: ClassVar[float | None] = None
    directions: ClassVar[Directions] = "mean"
    pooled: ClassVar[bool] = True

    @abstractmethod
    def of_rows(self, student_AC: Tensor, teacher_AC: Tensor, scale: Tensor) -> Tensor:
        """The loss of each row ``[A]``.

        Args:
            student_AC: ``[A, C]`` cosines.
            teacher_AC: ``[A, C]`` cosines of the same samples.
            scale: scalar, the pair's logit scale.
        """

    def __call__(
        self,
        similarities: Tensor,
        scale: Tensor,
        bias: Tensor,
        positives: Tensor,
        log_weights: Tensor,
    ) -> Tensor:
        """Not defined: one matrix says nothing of the teacher's.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{type(self).__name__} compares two matrices: call of_rows")


@dataclass(frozen=True)
class KLAffinity(AffinityLoss):
    """``KL(softmax(t T) || softmax(l S))`` of each row, the mean of both directions.

    S are the student's cosines and T the teacher's, l the pair's logit scale and t the teacher's:
    the contrastive relational distillation of CLIP-KD (Yang et al. 2024, arXiv:2307.12732).
    TinyCLIP's affinity mimicking (Wu et al. 2023, arXiv:2309.12314) is the same but for the
    teacher's entropy, which is constant.

    Args:
        teacher_scale: 1 / temperature of the teacher's softmax, above 0; None: the pair's own.
    """

    teacher_scale: Annotated[float, ABOVE_0] | None = None

    def __post_init__(self) -> None:
        check_bounds(self)

    def of_rows(self, student_AC: Tensor, teacher_AC: Tensor, scale: Tensor) -> Tensor:
        """The loss of each row ``[A]``."""
        sharpness = scale.detach() if self.teacher_scale is None else self.teacher_scale
        target_AC = (sharpness * teacher_AC).log_softmax(dim=1)
        found_AC = (scale * student_AC).log_softmax(dim=1)
        return F.kl_div(found_AC, target_AC, reduction="none", log_target=True).sum(dim=1)


@dataclass(frozen=True)
class SquaredAffinity(AffinityLoss):
    """The mean over a row of ``(s - t)^2``, of cosines; the logit scale has no part in it.

    As similarity-preserving distillation (Tung and Mori 2019, arXiv:1907.09682), with cosines of
    the two sides. The other direction would compare the same numbers.
    """

    directions: ClassVar[Directions] = "once"

    def of_rows(self, student_AC: Tensor, teacher_AC: Tensor, scale: Tensor) -> Tensor:
        """The loss of each row ``[A]``."""
        return (student_AC - teacher_AC).square().mean(dim=1)


def affinity_directions(
    loss: AffinityLoss,
    ends: tuple[str, str],
    taught: GatheredBatch,
    chunk_size: int | None = None,
) -> list[Direction]:
    """The directions of a pair, for `block_sum` over the student's two sides.

    Args:
        loss: one of the above.
        ends: the pair's modalities.
        taught: the batch that holds the teacher's embeddings of both.
        chunk_size: rows per block; None takes as many as `BLOCK_ENTRIES` allows.
    """
    dtype = taught.side(ends[0]).dtype
    teachers = [taught.side(teacher_of(name)).detach().to(dtype) for name in ends]
    size = chunk_size or max(1, BLOCK_ENTRIES // max(1, len(taught.sample_keys)))

    def direction(side: int) -> Direction:
        own_AD, others_CD = teachers[side][taught.local_rows], teachers[1 - side]

        def block(
            rows: slice, anchors_AD: Tensor, side_CD: Tensor, scale: Tensor, bias: Tensor
        ) -> tuple[Tensor, Tensor]:
            teacher_AC = own_AD[rows] @ others_CD.T
            value = loss.of_rows(anchors_AD @ side_CD.T, teacher_AC, scale).sum()
            return value, torch.zeros((), dtype=torch.int64, device=value.device)

        return Direction(side, taught.local_rows, block, size)

    return [direction(side) for side in ((0,) if loss.directions == "once" else (0, 1))]
