"""Muon for hidden matrices and AdamW for the rest, beside torch's own."""

import copy

import pytest
import torch
from torch import nn

from multimodal.training.optim import parameter_groups
from multimodal.training.optimizers.muon import MuonWithAdamW


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def train(model, optimizers, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        x = torch.randn(7, 6, generator=generator)
        model(x).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def make(model, **choices):
    return MuonWithAdamW(parameter_groups(model, 0.1, split_hidden=True), lr=0.01, **choices)


def equal(first, second):
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_each_part_steps_as_torchs_own(model):
    other = copy.deepcopy(model)
    train(model, [make(model)], 4)
    muon = torch.optim.Muon(
        [other.first.weight, other.second.weight], lr=0.01, weight_decay=0.1,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    rest = [
        {"params": [other.head.weight], "weight_decay": 0.1},
        {"params": [other.first.bias, other.second.bias, other.head.bias], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.98), eps=1e-6)
    train(other, [muon, adamw], 4)
    assert equal(model, other)


def test_a_restored_state_continues_to_the_bit(model):
    optimizer = make(model)
    train(model, [optimizer], 3)
    later = copy.deepcopy(model)
    restored = make(later)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, [optimizer], 3, seed=2)
    train(later, [restored], 3, seed=2)
    assert equal(model, later)


def test_a_schedule_reaches_both_parts(model):
    before = copy.deepcopy(model)
    optimizer = make(model)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    train(model, [optimizer], 2)
    assert equal(model, before)


def test_groups_keep_their_order(model):
    groups = parameter_groups(model, 0.1, split_hidden=True)
    optimizer = MuonWithAdamW(groups, lr=0.01)
    given = [[id(p) for p in group["params"]] for group in groups]
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == given
    assert [group["weight_decay"] for group in optimizer.param_groups] == [
        group["weight_decay"] for group in groups
    ]


def test_a_hidden_vector_is_refused():
    with pytest.raises(ValueError, match="2D"):
        MuonWithAdamW([{"params": [nn.Parameter(torch.ones(3))], "hidden": True}])
