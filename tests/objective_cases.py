"""Small random cases and every loss and strategy, for the tests of the objectives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multimodal.objectives.contract import Context
from multimodal.objectives.margin_losses import Hinge, Triplet
from multimodal.objectives.negatives import (
    DistanceWeighted,
    Filtered,
    Hard,
    InBatch,
    Random,
    SemiHard,
)
from multimodal.objectives.sigmoid_loss import SigLIP
from multimodal.objectives.softmax_losses import DCL, InfoNCE, SoftTarget, SupCon
from multimodal.objectives.weighting import Debiased, Reweighted

LOSSES = [
    InfoNCE(),
    InfoNCE(label_smoothing=0.1, directions="sum"),
    SigLIP(),
    DCL(),
    SupCon(),
    SupCon(label_smoothing=0.1),
    SoftTarget(target_temperature=0.3),
    SoftTarget(target_temperature=0.05, label_smoothing=0.2),
    Triplet(margin=0.3),
    Hinge(margin=0.3),
    Hinge(margin=0.3, hardest=True),
]
STRATEGIES = [
    InBatch(),
    Random(k=2),
    Random(k=100),
    Hard(k=2),
    Hard(k=100),
    Hard(k=2, skip=1),
    Hard(k=0.4),
    Hard(k=0.4, skip=1),
    SemiHard(margin=0.2),
    Reweighted(beta=0.7),
    Debiased(tau_plus=0.1),
    Debiased(tau_plus=0.3, beta=0.5),
    DistanceWeighted(k=3),
    Filtered(threshold=0.3, then=InBatch()),
    Filtered(threshold=0.3, then=Hard(k=2)),
]


def context(scale: float = 5.0, dtype: torch.dtype = torch.float64, **changes: object) -> Context:
    fields = {"seed": 1, "step": 2, "pair": "image_text", "direction": "image->text"}
    return Context(
        **{**fields, "scale": torch.tensor(scale, dtype=dtype), "embed_dim": 4, **changes}
    )


@dataclass
class Case:
    """A block of similarities with its masks."""

    similarities: Tensor
    positives: Tensor
    negatives: Tensor
    anchor_ids: Tensor
    candidate_ids: Tensor


def case(seed: int, anchors: int = 4, candidates: int = 9, num_positives: int = 1) -> Case:
    """Distinct candidates in mixed order; each anchor has ``num_positives`` positives."""
    generator = torch.Generator().manual_seed(seed)
    similarities = torch.rand(anchors, candidates, generator=generator, dtype=torch.float64) * 2 - 1
    candidate_ids = torch.randperm(candidates, generator=generator)
    positives = torch.zeros(anchors, candidates, dtype=torch.bool)
    for row in range(anchors):
        chosen = torch.randperm(candidates, generator=generator)[:num_positives]
        positives[row, chosen] = True
    neither = torch.rand(anchors, candidates, generator=generator) < 0.15
    return Case(
        similarities, positives, ~positives & ~neither, torch.arange(anchors), candidate_ids
    )
