"""A strategy's warm-up: the mix of two losses, on every path, and a function of the step alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from marks import some
from objective_cases import STRATEGIES, Batch, batch, dense_objective, gradients, one_pair_objective

from multimodal.objectives.candidates import AllRanks, Queue
from multimodal.objectives.interfaces import compatible
from multimodal.objectives.kernels.fused import has_fused_kernel
from multimodal.objectives.kernels.hardest import hardest_k
from multimodal.objectives.losses.margin import Hinge, Triplet
from multimodal.objectives.losses.sigmoid import SigLIP
from multimodal.objectives.losses.softmax import DCL, InfoNCE
from multimodal.objectives.negatives.selection import Filtered, Hard, InBatch, SemiHard
from multimodal.objectives.negatives.warmup import strength

STEPS = 8
LOSSES = [InfoNCE(), InfoNCE(label_smoothing=0.1), DCL(), SigLIP(), Triplet(), Hinge(hardest=True)]
CHOICES = [
    (loss, replace(strategy, warmup_steps=STEPS))
    for loss in LOSSES
    for strategy in STRATEGIES
    if not isinstance(strategy, InBatch)
    and getattr(strategy, "k", 0) != 100
    and compatible(loss, strategy) is None
]


def loss_of(objective: torch.nn.Module, data: Batch, step: int) -> torch.Tensor:
    output = objective(data.embeddings(), data.sample_ids, data.positive_keys, step, 1, "s")
    return output.loss


def tracked(seed: int, repeated: str) -> Batch:
    data = batch(seed, 9, repeated=repeated)
    data.image.requires_grad_()
    data.text.requires_grad_()
    return data


@pytest.mark.parametrize(
    ("repeated", "candidates"), [("nothing", AllRanks()), ("keys", Queue(size=8))], ids=str
)
@pytest.mark.parametrize(("loss", "strategy"), some(CHOICES, every=3), ids=str)
def test_the_loss_is_the_mix_of_both_over_the_whole_matrix(loss, strategy, repeated, candidates):
    for step, part in ((0, 0.0), (2, 0.25), (8, 1.0)):
        data = tracked(step, repeated)
        objective = one_pair_objective(loss, strategy, candidates)
        whole = [
            dense_objective(one_pair_objective(loss, negatives, candidates), data, step)
            for negatives in (InBatch(), strategy)
        ]
        found = loss_of(objective, data, step)
        torch.testing.assert_close(found, (1 - part) * whole[0] + part * whole[1])
        # The gradients of both, which have learned scales of their own.
        wanted = None
        for negatives, share in ((InBatch(), 1 - part), (strategy, part)):
            other = one_pair_objective(loss, negatives, candidates)
            each = gradients(share * dense_objective(other, data, step), other, data)
            wanted = each if wanted is None else [a + b for a, b in zip(wanted, each, strict=True)]
        torch.testing.assert_close(gradients(found, objective, data), wanted)


def test_quick_paths_serve_both_parts(monkeypatch):
    """A fused loss, mined negatives: no block of the whole matrix is formed."""
    loss, strategy = InfoNCE(), Hard(k=2, warmup_steps=STEPS)
    assert has_fused_kernel(loss, InBatch())
    assert hardest_k(loss, strategy) == (2, 0)

    def refuse(*given, **named):
        raise AssertionError("the general path")

    monkeypatch.setattr("multimodal.objectives.pair.chunked_direction", refuse)
    data = batch(0, 9)
    for step in range(STEPS + 1):
        loss_of(one_pair_objective(loss, strategy), data, step)


def test_the_part_is_a_function_of_the_step_alone():
    """Whatever came before: a run that is resumed at a step has the loss of one that was not."""
    objective = one_pair_objective(Triplet(), SemiHard(warmup_steps=STEPS))
    data = batch(0, 9)
    forth = [loss_of(objective, data, step).item() for step in range(12)]
    back = [loss_of(objective, data, step).item() for step in reversed(range(12))]
    assert forth == back[::-1]
    assert len(set(forth[: STEPS + 1])) == STEPS + 1
    assert len(set(forth[STEPS:])) == 1
    assert [strength(Hard(warmup_steps=4), step) for step in (0, 1, 3, 4, 9)] == [
        0, 0.25, 0.75, 1, 1,
    ]  # fmt: skip
    assert strength(Hard(), 0) == strength(InBatch(), 0) == strength(object(), 0) == 1
    assert "warmup_steps" not in dict.fromkeys(objective.state_dict())


def test_a_model_is_judged_by_the_strategy_itself():
    objective = one_pair_objective(Triplet(), Hard(k=2, warmup_steps=STEPS)).eval()
    plain = one_pair_objective(Triplet(), Hard(k=2)).eval()
    data = batch(0, 9)
    assert loss_of(objective, data, 0) == loss_of(plain, data, 0)


def test_anchors_without_negatives_are_counted_once():
    """By the strategy's count, where it takes part."""
    objective = one_pair_objective(InfoNCE(), Filtered(0.2, InBatch(), warmup_steps=STEPS))
    data = batch(0, 9)
    data.text[:] = data.image[:1]  # all candidates are equal: a filter leaves some with nothing

    def without(step: int) -> float:
        output = objective(data.embeddings(), data.sample_ids, data.positive_keys, step, 1, "s")
        return output.metrics["without_negatives/image_text"].item()

    assert without(0) == 0
    assert 0 < without(1) == without(STEPS) <= 18


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Hard(warmup_steps=-1), "warmup_steps must be at least 0"),
        (lambda: Hard(k=0.5, warmup_steps=-1), "warmup_steps must be at least 0"),
        (lambda: Filtered(0.5, Hard(warmup_steps=3)), "then.warmup_steps=3"),
    ],
)
def test_refuses(build, message):
    with pytest.raises(ValueError, match=message):
        build()
