"""Which parameters decay, and the shape of the schedules."""

import math

import pytest
import torch
from torch import nn

from multimodal.training.optim import Constant, WarmupCosine, parameter_groups


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.positions = nn.Parameter(torch.zeros(1, 3, 4))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_only_matrices_decay_and_frozen_parameters_stay_out():
    model = Model()
    decayed, plain = parameter_groups(model, weight_decay=0.1)
    assert decayed["weight_decay"] == 0.1
    assert [id(p) for p in decayed["params"]] == [id(model.project.weight)]
    assert plain["weight_decay"] == 0.0
    expected = [model.positions, model.logit_scale, model.project.bias, *model.norm.parameters()]
    assert {id(p) for p in plain["params"]} == {id(p) for p in expected}


def test_nothing_to_train_is_rejected():
    with pytest.raises(ValueError, match="nothing to train"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), weight_decay=0.1)


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
