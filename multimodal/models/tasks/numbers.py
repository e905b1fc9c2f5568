"""Tasks on what has an order: numbers, such as a score of a whole sequence, and levels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.models.tasks.base import TaskContext
from multimodal.models.tasks.scores import Scores, ordinal_scores, regression_scores
from multimodal.models.tasks.targets import LabelTask, TargetTask


@dataclass(eq=False, repr=False)
class Regression(TargetTask):
    """Numbers, such as a sentiment score of a whole sequence, by a robust loss.

    The target is float, ``[B]`` or ``[B, K]``.

    Args:
        outputs: K.
        beta: below it the loss is quadratic, above linear (smooth L1); in units of the target.
    """

    outputs: int = 1
    beta: float = field(default=1.0, kw_only=True)

    @property
    def num_outputs(self) -> int:
        """K."""
        return self.outputs

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Smooth L1 ``[N]``, mean over K."""
        targets = targets.to(logits.dtype).view_as(logits)
        return F.smooth_l1_loss(logits, targets, reduction="none", beta=self.beta).mean(dim=1)

    def scores(self, logits: Tensor, targets: Tensor) -> Scores:
        """Mean absolute and root mean square error, correlation."""
        return regression_scores(logits, targets.view_as(logits))

    def describe(self, logits: Tensor) -> str:
        """The numbers."""
        return ", ".join(f"{value:.2f}" for value in logits.tolist())

    def describe_target(self, target: Tensor) -> str:
        """The numbers."""
        return self.describe(target.reshape(-1))


@dataclass(eq=False, repr=False)
class Ordinal(LabelTask):
    """Levels in an order, lowest first, by one score and ordered thresholds.

    ``P(level > k) = sigmoid(score - t_k)`` with increasing ``t_k``; the predicted level counts the
    thresholds that are passed. Source: McCullagh 1980, "Regression Models for Ordinal Data",
    section 2, fitted by the binary losses of Cao et al. 2020, "Rank Consistent Ordinal Regression"
    (CORAL), section 3. The target is a level's number, int64 ``[B]``.
    """

    def __post_init__(self, parts: TaskContext) -> None:
        super().__post_init__(parts)
        steps = len(self.classes) - 1
        self.first = nn.Parameter(torch.tensor(-(steps - 1) / 2))
        self.gaps = nn.Parameter(torch.full((steps - 1,), 0.5413))  # softplus gives 1

    @property
    def num_outputs(self) -> int:
        """One score."""
        return 1

    def thresholds(self) -> Tensor:
        """``[levels - 1]``, increasing."""
        return self.first + F.pad(F.softplus(self.gaps).cumsum(0), (1, 0))

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum ``[N]`` of the binary losses "is the level above k"."""
        thresholds = self.thresholds().to(logits.dtype)
        above = targets[:, None] > torch.arange(len(thresholds), device=targets.device)
        return F.binary_cross_entropy_with_logits(
            logits - thresholds, above.to(logits.dtype), reduction="none"
        ).sum(dim=1)

    def levels(self, logits: Tensor) -> Tensor:
        """``[N]`` int64, from scores ``[N, 1]``."""
        return (logits > self.thresholds().to(logits.dtype)).sum(dim=1)

    def scores(self, logits: Tensor, targets: Tensor) -> Scores:
        """Accuracy, error in levels, weighted kappa."""
        return ordinal_scores(self.levels(logits), targets, len(self.classes))

    def describe(self, logits: Tensor) -> str:
        """The level's name."""
        return self.classes[int(self.levels(logits[None])[0])]

    def describe_target(self, target: Tensor) -> str:
        """The level's name."""
        return self.classes[int(target)]
