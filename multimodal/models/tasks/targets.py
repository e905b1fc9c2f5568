"""Tasks whose target is a label or a number of the sample, read from the fused features.

Beside the fused head each modality may have its own head, on its encoder's features: its loss keeps
a modality learning that the fusion would leave behind (Wang et al. 2020, "What Makes Training
Multi-modal Classification Networks Hard?"), and its score shows what the fusion adds.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor, nn

from multimodal.models.tasks.base import FusedBatch, LossTerm, Task, TaskContext, names_of
from multimodal.models.tasks.scores import Scores


@dataclass(eq=False, repr=False)
class TargetTask(Task):
    """Base: a linear head on the fused features, and one per modality.

    Args:
        parts: the model's.
        target: name of the input that holds the target; samples without it are left out.
        weight: of the task's loss in the experiment's.
        unimodal_weight: of the mean of the modalities' own losses beside the fused one; 0 for no
            such heads.
        unimodal_detach: the modalities' own heads learn, their encoders do not learn from them.
        dropout: on the features in front of the heads.

    Raises:
        ValueError: if given a weight below 0.
    """

    parts: InitVar[TaskContext]
    target: str
    weight: float = field(default=1.0, kw_only=True)
    unimodal_weight: float = field(default=0.0, kw_only=True)
    unimodal_detach: bool = field(default=False, kw_only=True)
    dropout: float = field(default=0.0, kw_only=True)

    def __post_init__(self, parts: TaskContext) -> None:
        super().__init__(self.weight)
        if self.unimodal_weight < 0:
            raise ValueError(f"unimodal_weight={self.unimodal_weight}: expected 0 or more")
        outputs = self.num_outputs
        self.drop = nn.Dropout(self.dropout)
        self.head = nn.Linear(parts.width, outputs)
        own = {name: int(parts.encoders[name].width) for name in parts.fused}  # type: ignore[arg-type]
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, outputs) for name, width in own.items()}
            if self.unimodal_weight > 0
            else {}
        )
        self.terms = ("fused", *self.heads)

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Outputs of a head."""

    def logits(self, batch: FusedBatch, rows: Tensor) -> Tensor:
        """``[N, outputs]`` of the fused head."""
        out: Tensor = self.head(self.drop(batch.fused.features[rows]))
        return out

    def _own_logits(self, batch: FusedBatch, name: str, rows: Tensor) -> Tensor:
        features = batch.encoded[name].features[rows]
        features = features.detach() if self.unimodal_detach else features
        out: Tensor = self.heads[name](self.drop(features))
        return out

    def loss(self, batch: FusedBatch) -> dict[str, LossTerm]:
        """``fused``, and a term per modality with its own head."""
        terms = {}
        rows = batch.rows(self.target)
        if len(rows):
            losses = self.losses(self.logits(batch, rows), batch.inputs[self.target][rows])
            terms["fused"] = LossTerm(losses.sum(), _count(rows))
        for name in self.heads:
            rows = batch.rows(self.target, name)
            if len(rows) and name in batch.encoded:
                targets = batch.inputs[self.target][rows]
                losses = self.losses(self._own_logits(batch, name, rows), targets)
                weight = self.unimodal_weight / len(self.heads)
                terms[name] = LossTerm(losses.sum(), _count(rows), weight)
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
        scores = {}
        for name in self.heads:
            own = observed[f"own/{name}"]
            there = ~own.isnan().any(dim=1)
            if there.any():
                scores[name] = self.scores(own[there], observed["targets"][there])
        return scores

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


@dataclass(eq=False, repr=False)
class LabelTask(TargetTask):
    """Base of those whose values have names.

    Args:
        classes: two or more different names, in the order of the numbers.

    Raises:
        ValueError: if given fewer than two, or equal ones.
    """

    classes: Sequence[str]

    def __post_init__(self, parts: TaskContext) -> None:
        self.classes = names_of(self.classes)
        super().__post_init__(parts)

    @property
    def num_outputs(self) -> int:
        """One for each name."""
        return len(self.classes)


def _count(rows: Tensor) -> Tensor:
    return torch.tensor(float(len(rows)), device=rows.device)
