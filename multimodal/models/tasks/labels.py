"""Tasks on labels: one of several classes, or any number of labels at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from multimodal.models.tasks.base import TaskContext, names_of
from multimodal.models.tasks.scores import Scores, classification_scores, multi_label_scores
from multimodal.models.tasks.targets import TargetTask


class Classification(TargetTask):
    """One of several classes, by softmax.

    Args:
        parts: the model's.
        target: name of the input that holds the class's number, int64 ``[B]``.
        classes: their names, in the order of the numbers.
        weight: of the task's loss.
        unimodal_weight: of the modalities' own losses; 0 for none.
        unimodal_detach: the encoders do not learn from those.
        dropout: in front of the heads.
        label_smoothing: share of the target that is spread over all classes.

    Raises:
        ValueError: if given fewer than two classes, or equal names.
    """

    def __init__(
        self,
        parts: TaskContext,
        target: str,
        classes: Sequence[str],
        weight: float = 1.0,
        unimodal_weight: float = 0.0,
        unimodal_detach: bool = False,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        self_classes = names_of(classes)
        super().__init__(
            parts, target, len(self_classes), weight, unimodal_weight, unimodal_detach, dropout
        )
        self.classes = self_classes
        self.label_smoothing = label_smoothing

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


class MultiLabel(TargetTask):
    """Any number of labels, each by a sigmoid.

    Args:
        parts: the model's.
        target: name of the input, float ``[B, C]`` of 0 and 1.
        classes: the labels' names.
        weight: of the task's loss.
        unimodal_weight: of the modalities' own losses; 0 for none.
        unimodal_detach: the encoders do not learn from those.
        dropout: in front of the heads.

    Raises:
        ValueError: if given fewer than two labels, or equal names.
    """

    def __init__(
        self,
        parts: TaskContext,
        target: str,
        classes: Sequence[str],
        weight: float = 1.0,
        unimodal_weight: float = 0.0,
        unimodal_detach: bool = False,
        dropout: float = 0.0,
    ) -> None:
        names = names_of(classes)
        super().__init__(
            parts, target, len(names), weight, unimodal_weight, unimodal_detach, dropout
        )
        self.classes = names

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
