"""Small random cases and every loss and strategy, for the tests of the objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from multimodal.core.similarity.similarities import Similarity
from multimodal.objectives.candidates import AllRanks
from multimodal.objectives.interfaces import Context, compatible
from multimodal.objectives.losses.margin import Hinge, Triplet
from multimodal.objectives.losses.sigmoid import SigLIP
from multimodal.objectives.losses.softmax import DCL, InfoNCE, SoftTarget, SupCon
from multimodal.objectives.matches import SampleKeys
from multimodal.objectives.negatives.reweighting import Debiased, Reweighted
from multimodal.objectives.negatives.selection import (
    DistanceWeighted,
    Filtered,
    Hard,
    InBatch,
    Random,
    SemiHard,
)
from multimodal.objectives.objective import ContrastiveObjective, make_objective

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


@dataclass
class Batch:
    """Embeddings of two modalities with the identity of their samples."""

    image: Tensor
    text: Tensor
    sample_ids: Tensor
    positive_keys: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        return Batch(
            self.image[rows], self.text[rows], self.sample_ids[rows], self.positive_keys[rows]
        )

    def embeddings(self) -> dict[str, Tensor]:
        return {"image": self.image, "text": self.text}


def batch(seed: int, size: int, dim: int = 6, repeated: str = "nothing") -> Batch:
    """Unit embeddings in float64; keys are shared by pairs of samples where ``repeated``."""
    generator = torch.Generator().manual_seed(seed)
    sides = [
        torch.nn.functional.normalize(
            torch.randn(size, dim, generator=generator, dtype=torch.float64), dim=1
        )
        for _ in range(2)
    ]
    ids = torch.randperm(10 * size, generator=generator)[:size]
    keys = {"nothing": ids, "keys": ids % max(2, size // 2), "most keys": ids % 2}[repeated]
    return Batch(*sides, ids, keys)


def compatible_choices() -> list[tuple[object, object]]:
    """Every loss with every strategy that goes with it, each kind once."""
    losses = [x for x in LOSSES if x not in (SupCon(label_smoothing=0.1), LOSSES[7])]
    strategies = [n for n in STRATEGIES if getattr(n, "k", 0) != 100]
    return [(x, n) for x in losses for n in strategies if compatible(x, n) is None]


def dense_objective(
    objective: ContrastiveObjective,
    data: Batch,
    step: int = 2,
    seed: int = 1,
    similar: Callable[[str, Tensor, Tensor], Tensor] = lambda _, rows, columns: rows @ columns.T,
) -> Tensor:
    """The loss of the pair 'image_text' over the whole matrix at once, in plain autograd."""
    pair = objective.pairs["image_text"]
    scale = pair.logit_scale.exp()
    bias = torch.zeros(()) if pair.logit_bias is None else pair.logit_bias
    total = torch.zeros((), dtype=torch.float64)
    sides = {"image": data.image, "text": data.text}
    for anchor, other in (("image", "text"), ("text", "image")):
        candidates, ids, keys = sides[other], data.sample_ids, data.positive_keys
        real = torch.ones_like(ids, dtype=torch.bool)
        if pair.queues:
            queue = pair.queues[other]
            candidates = torch.cat([candidates, queue.embeddings.to(candidates.dtype)])
            ids, keys = torch.cat([ids, queue.sample_ids]), torch.cat([keys, queue.positive_keys])
            real = torch.cat([real, queue.filled])
        same = data.sample_ids[:, None] == ids
        related = same | (data.positive_keys[:, None] == keys)
        positives = (related if pair.keys_are_positives else same) & real
        negatives = ~related & real
        similarities = similar(anchor, sides[anchor], candidates)
        given = Context(seed, step, "image_text", f"{anchor}->{other}", scale, candidates.shape[-1])
        log_weights = pair.negatives(
            similarities, positives, negatives, data.sample_ids, ids, given
        ).masked_fill(~negatives, -torch.inf)
        log_weights = log_weights.masked_fill(positives, 0)
        total = total + pair.loss(similarities, scale, bias, positives, log_weights).mean()
        if pair.loss.directions == "once":
            break
    return total / 2 if pair.loss.directions == "mean" else total


def one_pair_objective(
    loss: object,
    strategy: object,
    candidates: object | None = None,
    chunk_size: int | None = None,
    similarity: Similarity | None = None,
    **pair: object,
) -> ContrastiveObjective:
    """One pair 'image_text' in float64, its queues (if any) filled with 5 of 8."""
    pairs = {"image_text": {"anchor": "image", "other": "text", **pair}}
    objective = make_objective(
        pairs,
        loss,
        strategy,
        candidates or AllRanks(),
        embed_dim=6,
        chunk_size=chunk_size,
        similarity=similarity,
    )
    past = batch(99, 5)
    for queue in objective.pairs["image_text"].queues.values():
        queue.enqueue(past.image, SampleKeys(past.sample_ids, past.positive_keys))
    return objective.double()


def gradients(loss: Tensor, objective: ContrastiveObjective, data: Batch) -> list[Tensor]:
    """With respect to both embeddings and everything that is learned."""
    wanted = [data.image, data.text, *objective.parameters()]
    return list(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
