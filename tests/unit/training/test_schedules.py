"""The learning rates of a run, each from its formula."""

import math

import pytest
import torch
from torch import nn

from multimodal.training.schedules import (
    Constant,
    InverseSqrt,
    WarmupCosine,
    WarmupLinear,
    WarmupStableDecay,
)


def rates(make, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = make(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_warmup_cosine_follows_its_formula():
    seen = rates(lambda o: WarmupCosine(o, max_steps=20, warmup_fraction=0.2, min_ratio=0.1), 24)
    assert seen[:4] == pytest.approx([2.0 * (s + 1) / 5 for s in range(4)])
    for step in range(4, 20):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 4) / 16))
        assert seen[step] == pytest.approx(2.0 * (0.1 + 0.9 * cosine))
    assert seen[4] == 2.0
    assert seen[20:] == pytest.approx([0.2] * 4)


def test_constant_rises_and_stays():
    assert rates(lambda o: Constant(o, warmup_steps=1), 4) == pytest.approx([1.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("setting", "value"), [("max_steps", -1), ("warmup_fraction", 1.0), ("min_ratio", 1.5)]
)
def test_settings_out_of_range_are_named(setting, value):
    settings = {"max_steps": 10, setting: value}
    with pytest.raises(ValueError, match=f"scheduler.{setting}={value}"):
        rates(lambda o: WarmupCosine(o, **settings), 1)


def test_linear_falls_in_a_line():
    seen = rates(lambda o: WarmupLinear(o, max_steps=10, warmup_fraction=0.2, min_ratio=0.5), 12)
    assert seen[:2] == pytest.approx([2 / 3, 4 / 3])
    assert seen[2:] == pytest.approx([2.0 - step / 8 for step in range(8)] + [1.0, 1.0])


def test_inverse_sqrt_needs_no_end():
    seen = rates(lambda o: InverseSqrt(o, warmup_steps=4), 101)
    assert seen[:4] == pytest.approx([2.0 * (s + 1) / 5 for s in range(4)])
    assert seen[4:] == pytest.approx([2.0 * math.sqrt(4 / step) for step in range(4, 101)])


@pytest.mark.parametrize(
    ("shape", "fall"),
    [
        ("sqrt", lambda u: 1 - math.sqrt(u)),
        ("linear", lambda u: 1 - u),
        ("cosine", lambda u: (1 + math.cos(math.pi * u)) / 2),
    ],
)
def test_a_stable_phase_ends_in_a_decay(shape, fall):
    seen = rates(
        lambda o: WarmupStableDecay(
            o, max_steps=20, warmup_steps=4, decay_steps=5, min_ratio=0.1, shape=shape
        ),
        22,
    )
    assert seen[:4] == pytest.approx([2.0 * (s + 1) / 5 for s in range(4)])
    assert seen[4:16] == [2.0] * 12
    expected = [2.0 * (0.1 + 0.9 * fall(u / 5)) for u in range(6)]
    assert seen[15:21] == pytest.approx(expected)
    assert seen[21] == pytest.approx(0.2)


def test_a_fifth_decays_unless_told_otherwise():
    seen = rates(lambda o: WarmupStableDecay(o, max_steps=10, shape="linear"), 10)
    assert seen == pytest.approx([2.0] * 9 + [1.0])


def test_the_stable_phase_does_not_depend_on_the_end():
    long = rates(lambda o: WarmupStableDecay(o, max_steps=1000, warmup_steps=3), 50)
    cooled = rates(lambda o: WarmupStableDecay(o, max_steps=60, warmup_steps=3, decay_steps=10), 50)
    assert long == cooled


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (WarmupLinear, {"max_steps": -1}, "scheduler.max_steps=-1"),
        (WarmupLinear, {"max_steps": 5, "min_ratio": -1.0}, "scheduler.min_ratio=-1.0"),
        (InverseSqrt, {"warmup_steps": 0}, "scheduler.warmup_steps=0"),
        (Constant, {"warmup_steps": -2}, "scheduler.warmup_steps=-2"),
        (WarmupStableDecay, {"max_steps": 5, "decay_steps": 0}, "scheduler.decay_steps=0"),
        (WarmupStableDecay, {"max_steps": 5, "shape": "cubic"}, "scheduler.shape='cubic'"),
        (
            WarmupStableDecay,
            {"max_steps": 5, "warmup_steps": 3, "decay_steps": 3},
            "3 steps of warm-up and 3 of decay do not fit in max_steps=5",
        ),
    ],
)
def test_what_does_not_fit_is_named(make, settings, message):
    with pytest.raises(ValueError, match=message):
        rates(lambda o: make(o, **settings), 1)
