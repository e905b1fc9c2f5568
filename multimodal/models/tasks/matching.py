"""Matching: whether two inputs belong together, predicted from the fused pair; hard negatives.

Sizes in comments: N pairs of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.core.batch import EncoderOutput
from multimodal.core.tensor_hashing import pair_hash
from multimodal.models.tasks.base import FusedBatch, LossTerm, Task, TaskContext, take
from multimodal.models.tasks.scores import OverSamples, Scores


class Matching(Task):
    """Image-text matching, or of any two modalities, beside a contrastive loss.

    Every sample is fused three times: unchanged, with another sample's second modality, and with
    another one's first. The others are drawn from the rank's batch, likelier the more similar their
    embeddings are. Source: Li et al. 2021, "Align before Fuse" (ALBEF), section 3.2; without its
    momentum distillation. Samples with equal positive keys are not negatives of each other.

    Args:
        parts: the model's; both modalities are fused.
        first: a modality.
        second: another one.
        weight: of the task's loss.
        temperature: divides the cosines in the draw of negatives; large draws evenly. Towers
            without a head have no embeddings, and negatives are drawn evenly then.
        candidates: that each sample's second modality is ranked among in evaluation, itself
            included.

    Raises:
        ValueError: if given a modality that is not fused, and numbers out of their range.
    """

    terms = ("match",)

    def __init__(
        self,
        parts: TaskContext,
        first: str,
        second: str,
        weight: float = 1.0,
        temperature: float = 0.07,
        candidates: int = 10,
    ) -> None:
        super().__init__(weight)
        for name in (first, second):
            if name not in parts.fused:
                raise ValueError(
                    f"matching needs {name!r} in the fusion, which reads {', '.join(parts.fused)}"
                )
        if first == second or temperature <= 0 or candidates < 2:
            raise ValueError(
                "matching needs two different modalities, a temperature above 0 and at least 2 "
                f"candidates; given {first!r}, {second!r}, {temperature} and {candidates}"
            )
        self.pair = (first, second)
        self.temperature = temperature
        self.candidates = candidates
        self.head = nn.Linear(parts.width, 2)

    def negatives(self, batch: FusedBatch, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each of ``rows``: a wrong second, a wrong first (places in ``rows``), and if any.

        The choice is a hash of the samples and the step: it does not depend on a generator.
        """
        keys, ids = batch.positive_keys[rows], batch.sample_ids[rows]
        allowed = keys[:, None] != keys[None, :]
        first, second = self.pair
        similarity = torch.zeros(allowed.shape, device=ids.device)
        if first in batch.embeddings and second in batch.embeddings:
            a, b = (batch.embeddings[name][rows].detach() for name in self.pair)
            similarity = (a @ b.T).float() / self.temperature
        scores = similarity.masked_fill(~allowed, -torch.inf)
        seconds = (scores + _gumbel(ids, ids, batch.key)).argmax(dim=1)
        firsts = (scores.T + _gumbel(ids, ids, batch.key ^ 1)).argmax(dim=1)
        return seconds, firsts, allowed.any(dim=1)

    def logits(self, batch: FusedBatch, firsts: Tensor, seconds: Tensor) -> Tensor:
        """``[N, 2]`` for the pairs of samples (places in the batch): no match, match."""
        encoded: dict[str, EncoderOutput] = {
            name: take(batch.encoded[name], rows)
            for name, rows in zip(self.pair, (firsts, seconds), strict=True)
        }
        out: Tensor = self.head(batch.fuse(encoded, {}).features)
        return out.float() if out.dtype != torch.float64 else out

    def loss(self, batch: FusedBatch) -> dict[str, LossTerm]:
        """``match``: cross-entropy over real pairs and two wrong ones each."""
        rows = batch.rows(*self.pair)
        if not len(rows) or any(name not in batch.encoded for name in self.pair):
            return {}
        seconds, firsts, any_wrong = self.negatives(batch, rows)
        places = torch.arange(len(rows), device=rows.device)
        a = torch.cat([places, places[any_wrong], firsts[any_wrong]])
        b = torch.cat([places, seconds[any_wrong], places[any_wrong]])
        targets = torch.zeros(len(a), dtype=torch.int64, device=rows.device)
        targets[: len(rows)] = 1
        losses = F.cross_entropy(self.logits(batch, rows[a], rows[b]), targets, reduction="none")
        return {"match": LossTerm(losses.sum(), torch.tensor(float(len(a)), device=rows.device))}

    def observe(self, batch: FusedBatch) -> dict[str, Tensor]:
        """``[N, candidates]`` scores of each first with its own second, then with others'.

        The others are those that follow in the batch and belong to another key; a batch that has
        too few says nothing.
        """
        rows = batch.rows(*self.pair)
        keys = batch.positive_keys[rows]
        others: list[list[int]] = []
        kept = []
        for place in range(len(rows)):
            following = [(place + step) % len(rows) for step in range(1, len(rows))]
            wrong = [i for i in following if keys[i] != keys[place]][: self.candidates - 1]
            if len(wrong) == self.candidates - 1:
                kept.append(place)
                others.append([place, *wrong])
        if not kept:
            return {}
        columns = torch.tensor(others, device=rows.device)
        anchors = torch.tensor(kept, device=rows.device)
        scores = [self.logits(batch, rows[anchors], rows[column]) for column in columns.T]
        margin = torch.stack([score[:, 1] - score[:, 0] for score in scores], dim=1)
        return {"margin": margin}

    def score(self, observed: Mapping[str, Tensor]) -> Scores:
        """Share of right pairs ranked first, and of right and wrong ones distinguished."""
        margin = observed["margin"]
        own, wrong = margin[:, :1], margin[:, 1:]
        beaten, tied = (own > wrong).all(dim=1), (own >= wrong).all(dim=1)
        accuracy = ((own > 0).double().mean() + (wrong <= 0).double().mean()) / 2
        over = OverSamples.of(
            (beaten.double() + tied.double()) / 2,
            ((own > 0).double().mean(dim=1) + (wrong <= 0).double().mean(dim=1)) / 2,
            ((own > wrong).double() + 0.5 * (own == wrong).double()).mean(dim=1),
        )
        return Scores(
            {
                "first": (beaten.double().mean().item() + tied.double().mean().item()) / 2,
                "accuracy": accuracy.item(),
                "auc": ((own > wrong).double() + 0.5 * (own == wrong).double()).mean().item(),
            },
            {"first": 1 / margin.shape[1], "accuracy": 0.5, "auc": 0.5},
            len(margin),
            {name: over.mean(place) for place, name in enumerate(("first", "accuracy", "auc"))},
        )


def _gumbel(rows: Tensor, columns: Tensor, key: int) -> Tensor:
    uniform = (pair_hash(rows, columns, key).double() + 0.5) / 2**63
    return -(-uniform.log()).log().float()
