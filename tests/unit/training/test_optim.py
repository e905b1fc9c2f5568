"""Which parameters decay, which are for Muon, and fused kernels."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from experiment_helpers import composed
from torch import nn
from torch.utils.data import DataLoader

from multimodal.models.layers.transformer import Transformer
from multimodal.training.build import build_module
from multimodal.training.callbacks.nonfinite import SkipNonFinite
from multimodal.training.modules.base import TrainingModule
from multimodal.training.optim import fused, hidden_matrices, parameter_groups


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


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.patches = nn.Conv2d(3, 8, 2)
        self.layers = Transformer(8, 1, 2)
        self.theirs = nn.MultiheadAttention(8, 2)
        self.head = nn.Sequential(nn.Linear(8, 4))
        self.tasks = nn.ModuleDict({"kind": nn.Linear(8, 3)})


def test_hidden_matrices_are_those_between_features():
    model = Towers()
    hidden = hidden_matrices(model)
    assert hidden == {
        "layers.blocks.0.attention.qkv.weight", "layers.blocks.0.attention.out.weight",
        "layers.blocks.0.mlp.fc1.weight", "layers.blocks.0.mlp.fc2.weight",
        "theirs.in_proj_weight", "theirs.out_proj.weight",
    }  # fmt: skip
    groups = parameter_groups(model, 0.1, split_hidden=True)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)] for group in groups if group["hidden"] for p in group["params"]}
    assert found == hidden
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert all("hidden" not in group for group in parameter_groups(model, 0.1))


@pytest.mark.parametrize(("half", "expected"), [(False, True), (True, None)])
def test_null_fuses_unless_a_scaler_skips_steps(half, expected):
    make = partial(torch.optim.AdamW, lr=0.1, fused=None)
    optimizer = fused(make, half)([nn.Parameter(torch.ones(2))])
    assert optimizer.param_groups[0]["fused"] is expected
    for plain in (partial(torch.optim.AdamW, fused=False), partial(torch.optim.Adafactor)):
        assert fused(plain, half) is plain


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_configured_optimizer_is_the_one_that_its_parts_ask_for(name):
    """A configuration wraps what it makes: what a partial says of itself is still asked."""
    words = ["+experiment=clip_scratch", "encoder@model.towers.text.encoder=text_small"]
    with composed(*words, f"optimizer={name}") as config:
        optimizer, _ = build_module(config).make_optimizer()
    if name == "adamw":
        assert [group["fused"] for group in optimizer.param_groups] == [True, True]
    else:
        by_muon = [group for group in optimizer.param_groups if group.get("hidden")]
        assert sum(len(group["params"]) for group in by_muon) >= 4
        assert all(p.ndim >= 2 for group in by_muon for p in group["params"])


class Line(TrainingModule):
    """A product with a vector; its gradient is far above the limit."""

    def __init__(self) -> None:
        super().__init__(partial(torch.optim.SGD, lr=0.1), None, 0.0)
        self.weight, self.bias = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2))

    def training_step(self, batch, batch_idx):
        return (100 * (batch @ self.weight + self.bias)).square().sum()


def test_the_gradients_norm_is_measured_once_a_step(monkeypatch, tmp_path):
    batches = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    plain = Line()
    optimizer = plain.make_optimizer()[0]
    for batch in batches:
        optimizer.zero_grad()
        plain.training_step(batch, 0).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()

    def again(*_, **__):
        raise AssertionError("the norm was measured a second time")

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", again)
    monkeypatch.setattr(torch.nn.utils.clip_grad, "clip_grad_norm_", again)
    trained = Line()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=4, gradient_clip_val=0.5, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[SkipNonFinite(3, str(tmp_path))], default_root_dir=str(tmp_path),
    )  # fmt: skip
    trainer.fit(trained, train_dataloaders=DataLoader(batches, batch_size=None))
    assert torch.equal(trained.weight, plain.weight)
    assert torch.equal(trained.bias, plain.bias)
