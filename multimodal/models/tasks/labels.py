"""Tasks on labels: one of several classes, or any number of labels at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from multimodal.models.tasks.scores import Scores, classification_scores, multi_label_scores
from multimodal.models.tasks.targets import LabelTask


@dataclass(eq=False, repr=False)
class Classification(LabelTask):
    """One of several classes, by softmax; the target is a class's number, int64 ``[B]``.

    Args:
        label_smoothing: share of the target that is spread over all classes.
    """

    label_smoothing: float = field(default=0.0, kw_only=True)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy ``[N]``."""
        return F.cross_entropy(
            logits.float() if logits.dtype != torch.float64 else logits,
            targets,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )

    def scores(self, logits: Tensor, targets: Tensor) -> Scores:
        """Accuracy, and its mean per class."""
        return classification_scores(logits.argmax(dim=1), targets, len(self.classes))

    def describe(self, logits: Tensor) -> str:
        """The class and its probability."""
        share, best = logits.float().softmax(dim=0).max(dim=0)
        return f"{self.classes[int(best)]} ({100 * share.item():.0f} %)"

    def describe_target(self, target: Tensor) -> str:
        """The class's name."""
        return self.classes[int(target)]


@dataclass(eq=False, repr=False)
class MultiLabel(LabelTask):
    """Any number of labels, each by a sigmoid; the target is float ``[B, C]`` of 0 and 1."""

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy ``[N]``, mean over labels."""
        losses = F.binary_cross_entropy_with_logits(
            logits, targets.to(logits.dtype), reduction="none"
        )
        return losses.mean(dim=1)

    def scores(self, logits: Tensor, targets: Tensor) -> Scores:
        """Mean average precision and micro F1."""
        return multi_label_scores(logits, targets)

    def describe(self, logits: Tensor) -> str:
        """The labels above one half."""
        return ", ".join(n for n, x in zip(self.classes, logits, strict=True) if x > 0) or "none"

    def describe_target(self, target: Tensor) -> str:
        """The labels that hold."""
        return ", ".join(n for n, x in zip(self.classes, target, strict=True) if x > 0) or "none"
