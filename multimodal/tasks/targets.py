"""Tasks whose target is a label or a number of the sample, read from the fused features.

Beside the fused head each modality may have a head of its own, on its encoder's features: its loss
keeps a modality learning that the fusion would leave behind (Wang et al. 2020, "What Makes Training
Multi-modal Classification Networks Hard?"), and its score shows what the fusion adds.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.evaluation.prediction import (
    Scores,
    classification_scores,
    multi_label_scores,
    ordinal_scores,
    regression_scores,
)
from multimodal.tasks.contract import FusedBatch, Parts, Task, Term, names_of


class TargetTask(Task):
    """Base: a linear head on the fused features, and one per modality.

    Args:
        parts: the model's.
        target: name of the input that holds the target; samples without it are left out.
        outputs: of a head.
        weight: of the task's loss in the experiment's.
        unimodal_weight: of the mean of the modalities' own losses beside the fused one; 0 for no
            heads of their own.
        unimodal_detach: the modalities' own heads learn, their encoders do not learn from them.
        dropout: on the features in front of the heads.

    Raises:
        ValueError: for a weight below 0.
    """

    def __init__(
        self,
        parts: Parts,
        target: str,
        outputs: int,
        weight: float,
        unimodal_weight: float,
        unimodal_detach: bool,
        dropout: float,
    ) -> None:
        super().__init__(weight)
        if unimodal_weight < 0:
            raise ValueError(f"unimodal_weight={unimodal_weight}: expected 0 or more")
        self.target = target
        self.unimodal_weight = unimodal_weight
        self.unimodal_detach = unimodal_detach
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(parts.width, outputs)
        own = {name: int(parts.encoders[name].width) for name in parts.fused}  # type: ignore[arg-type]
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, outputs) for name, width in own.items()}
            if unimodal_weight > 0
            else {}
        )
        self.terms = ("fused", *self.heads)

    def logits(self, batch: FusedBatch, rows: Tensor) -> Tensor:
        """``[N, outputs]`` of the fused head."""
        out: Tensor = self.head(self.dropout(batch.fused.features[rows]))
        return out

    def _own_logits(self, batch: FusedBatch, name: str, rows: Tensor) -> Tensor:
        features = batch.encoded[name].features[rows]
        features = features.detach() if self.unimodal_detach else features
        out: Tensor = self.heads[name](self.dropout(features))
        return out

    def loss(self, batch: FusedBatch) -> dict[str, Term]:
        """``fused``, and a term per modality that has a head of its own."""
        terms = {}
        rows = batch.rows(self.target)
        if len(rows):
            losses = self.losses(self.logits(batch, rows), batch.inputs[self.target][rows])
            terms["fused"] = Term(losses.sum(), _count(rows))
        for name in self.heads:
            rows = batch.rows(self.target, name)
            if len(rows) and name in batch.encoded:
                targets = batch.inputs[self.target][rows]
                losses = self.losses(self._own_logits(batch, name, rows), targets)
                weight = self.unimodal_weight / len(self.heads)
                terms[name] = Term(losses.sum(), _count(rows), weight)
        return terms

    def observe(self, batch: FusedBatch) -> dict[str, Tensor]:
        """Logits and targets, and ``own/MODALITY`` logits (NaN where the modality is absent)."""
        rows = batch.rows(self.target)
        if not len(rows):
            return {}
        logits = self.logits(batch, rows)
        observed = {"logits": logits, "targets": batch.inputs[self.target][rows]}
        for name in self.heads:
            own = torch.full_like(logits, torch.nan)
            if name in batch.encoded:
                own = self._own_logits(batch, name, rows)
                if name in batch.presence:
                    own = torch.where(batch.presence[name][rows][:, None], own, torch.nan)
            observed[f"own/{name}"] = own
        return observed

    def score(self, observed: Mapping[str, Tensor]) -> Scores:
        """The scores of the fused head; see ``own_scores`` for the others."""
        return self.scores(observed["logits"], observed["targets"])

    def own_scores(self, observed: Mapping[str, Tensor]) -> dict[str, Scores]:
        """Modality -> the scores of its own head, over the samples that have it."""
        found = {}
        for name in self.heads:
            own = observed[f"own/{name}"]
            there = ~own.isnan().any(dim=1)
            if there.any():
                found[name] = self.scores(own[there], observed["targets"][there])
        return found

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """``[N]``, the loss of each sample."""

    @abstractmethod
    def scores(self, logits: Tensor, targets: Tensor) -> Scores:
        """The scores of ``[N, outputs]``."""

    @abstractmethod
    def describe(self, logits: Tensor) -> str:
        """What one sample's logits ``[outputs]`` say, for people."""

    @abstractmethod
    def describe_target(self, target: Tensor) -> str:
        """One sample's target, for people."""


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
        ValueError: for fewer than two classes, or equal names.
    """

    def __init__(
        self,
        parts: Parts,
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
        ValueError: for fewer than two labels, or equal names.
    """

    def __init__(
        self,
        parts: Parts,
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


class Regression(TargetTask):
    """Numbers, such as a sentiment score of a whole sequence, by a robust loss.

    Args:
        parts: the model's.
        target: name of the input, float ``[B]`` or ``[B, K]``.
        outputs: K.
        weight: of the task's loss.
        unimodal_weight: of the modalities' own losses; 0 for none.
        unimodal_detach: the encoders do not learn from those.
        dropout: in front of the heads.
        beta: below it the loss is quadratic, above linear (smooth L1); in units of the target.
    """

    def __init__(
        self,
        parts: Parts,
        target: str,
        outputs: int = 1,
        weight: float = 1.0,
        unimodal_weight: float = 0.0,
        unimodal_detach: bool = False,
        dropout: float = 0.0,
        beta: float = 1.0,
    ) -> None:
        super().__init__(parts, target, outputs, weight, unimodal_weight, unimodal_detach, dropout)
        self.beta = beta

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


class Ordinal(TargetTask):
    """Levels in an order, by one score and ordered thresholds.

    ``P(level > k) = sigmoid(score - t_k)`` with increasing ``t_k``; the predicted level counts the
    thresholds that are passed. Source: McCullagh 1980, "Regression Models for Ordinal Data",
    section 2, fitted by the binary losses of Cao et al. 2020, "Rank Consistent Ordinal Regression"
    (CORAL), section 3.

    Args:
        parts: the model's.
        target: name of the input that holds the level's number, int64 ``[B]``.
        classes: the levels' names, lowest first.
        weight: of the task's loss.
        unimodal_weight: of the modalities' own losses; 0 for none.
        unimodal_detach: the encoders do not learn from those.
        dropout: in front of the heads.

    Raises:
        ValueError: for fewer than two levels, or equal names.
    """

    def __init__(
        self,
        parts: Parts,
        target: str,
        classes: Sequence[str],
        weight: float = 1.0,
        unimodal_weight: float = 0.0,
        unimodal_detach: bool = False,
        dropout: float = 0.0,
    ) -> None:
        names = names_of(classes)
        super().__init__(parts, target, 1, weight, unimodal_weight, unimodal_detach, dropout)
        self.classes = names
        steps = len(names) - 1
        self.first = nn.Parameter(torch.tensor(-(steps - 1) / 2))
        self.gaps = nn.Parameter(torch.full((steps - 1,), 0.5413))  # softplus gives 1

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


def _count(rows: Tensor) -> Tensor:
    return torch.tensor(float(len(rows)), device=rows.device)
