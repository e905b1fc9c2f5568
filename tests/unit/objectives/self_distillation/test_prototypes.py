"""The head and the cross entropy, against loops and finite differences in float64."""

from __future__ import annotations

import math

import pytest
import torch

from multimodal.objectives.self_distillation.prototypes import (
    PrototypeHead,
    cross_entropy,
    distribution,
)


def test_the_cross_entropy_equals_loops():
    torch.manual_seed(0)
    teacher, student = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    centre = torch.randn(7).double()
    found = cross_entropy(distribution(teacher, centre, 0.04), student, 0.1)
    for row in range(5):
        target = [math.exp((float(t) - float(c)) / 0.04) for t, c in zip(teacher[row], centre)]  # noqa: B905
        logits = [float(s) / 0.1 for s in student[row]]
        norm = math.log(sum(math.exp(each) for each in logits))
        wanted = -sum(t / sum(target) * (each - norm) for t, each in zip(target, logits))  # noqa: B905
        assert found[row].item() == pytest.approx(wanted, rel=1e-12)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda logits: cross_entropy(distribution(teacher, centre, 0.04), logits, 0.1), student
    )


def test_logits_are_cosines_and_those_of_a_mean_are_the_mean_of_those():
    torch.manual_seed(0)
    head = PrototypeHead(6, prototypes=9, hidden=8, bottleneck=4).double()
    vectors = head.vectors(torch.randn(3, 5, 6).double())
    assert vectors.shape == (3, 5, 4)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3, 5).double())
    logits = head.logits(vectors)
    for row in range(3):
        for place in range(5):
            for k in range(9):
                cosine = torch.cosine_similarity(vectors[row, place], head.prototypes[k], dim=0)
                torch.testing.assert_close(logits[row, place, k], cosine)
    mean = vectors.flatten(0, 1).mean(0)
    torch.testing.assert_close(head.logits(mean), logits.flatten(0, 1).mean(0))


def test_under_autocast_it_computes_in_float32():
    head = PrototypeHead(6, prototypes=9)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = head.vectors(torch.randn(2, 6))
        logits = head.logits(vectors)
    assert vectors.dtype == torch.float32
    assert distribution(logits, torch.zeros(9), 0.04).dtype == torch.float32
    assert cross_entropy(logits.softmax(-1), logits, 0.1).dtype == torch.float32


@pytest.mark.parametrize("name", ["prototypes", "hidden", "bottleneck"])
def test_a_size_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        PrototypeHead(6, **{name: 0})
