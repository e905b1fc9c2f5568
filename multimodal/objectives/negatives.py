"""Strategies that choose among an anchor's negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multimodal.objectives.contract import Context, Weighting


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
