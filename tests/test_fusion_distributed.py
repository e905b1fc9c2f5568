"""A fusion with tasks on two ranks: loss and gradients of one process on the joined batch."""

from __future__ import annotations

import functools

import pytest
import torch
from gloo import run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from multimodal.distributed import all_reduce_sum, world_size
from multimodal.encoders.features import FeatureEncoder
from multimodal.fusion.cross import CrossAttentionFusion
from multimodal.fusion.latent import BottleneckFusion
from multimodal.fusion.pooled import ConcatFusion
from multimodal.fusion_model import FusionModel
from multimodal.models import Tower
from multimodal.tasks.labels import Classification
from multimodal.tasks.numbers import Regression
from multimodal.training.fusion import FusionModule
from multimodal.types import Batch

COUNT, SPLIT = 10, 6  # samples; of them on the first rank
TIGHT = {"rtol": 1e-9, "atol": 1e-12}
FUSIONS = {
    "cross_attention": functools.partial(CrossAttentionFusion, width=8, num_heads=2),
    "bottleneck": functools.partial(BottleneckFusion, width=8, num_heads=2),
    "concat": functools.partial(ConcatFusion, width=8),
}


def module(fusion: str, dropout: float) -> FusionModule:
    torch.manual_seed(0)
    towers = {
        name: Tower(FeatureEncoder(features, width=8), head=None)
        for name, features in (("image", 5), ("sound", 4), ("depth", 3))
    }
    tasks = {
        "kind": lambda parts: Classification(parts, "kind", ["a", "b", "c"], unimodal_weight=0.5),
        "score": lambda parts: Regression(parts, "score", weight=0.7, unimodal_weight=0.2),
    }
    model = FusionModel(towers, FUSIONS[fusion], tasks, modality_dropout=dropout)
    return FusionModule(model, None, torch.optim.SGD, None, 0.0, seed=3).double()


def data(case: str) -> Batch:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    everywhere = torch.ones(COUNT, dtype=torch.bool)
    first = torch.arange(COUNT) < SPLIT
    presence = {
        "whole": {},
        "some": {"sound": torch.rand(COUNT, generator=generator) < 0.6},
        "absent on one rank": {"sound": first},
        "target on one rank": {"score": ~first},
        "absent everywhere": {"depth": ~everywhere},
    }[case]
    return Batch(
        inputs={
            "image": random(COUNT, 2, 5), "sound": random(COUNT, 3, 4), "depth": random(COUNT, 3),
            "kind": torch.randint(3, (COUNT,), generator=generator), "score": random(COUNT, 1),
        },
        masks={},
        presence=presence,
        sample_ids=torch.arange(COUNT) + 50,
        positive_keys=torch.arange(COUNT),
        repeats=torch.zeros(COUNT, dtype=torch.int64),
        source="made",
        step=7,
    )  # fmt: skip


def rows_of(batch: Batch, rank: int, drop: bool) -> Batch:
    """One rank's share; ``drop``: a modality that it lacks throughout is not even in its inputs."""
    place = slice(0, SPLIT) if rank == 0 else slice(SPLIT, COUNT)
    cut = batch._map(lambda value: value[place])
    if drop:
        gone = [name for name, there in cut.presence.items() if not there.any()]
        cut.inputs = {name: value for name, value in cut.inputs.items() if name not in gone}
        cut.presence = {name: value for name, value in cut.presence.items() if name not in gone}
    return cut


class Step(nn.Module):
    """What Lightning hands to DDP: the training step as a forward."""

    def __init__(self, inner: FusionModule) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Batch) -> Tensor:
        return self.inner.training_step(batch, 0)


def equals_one_process(rank: int, fusion: str, drop: bool) -> None:
    cases = ("whole", "some", "absent on one rank", "target on one rank", "absent everywhere")
    for dropout in (0.0, 0.4):
        for case in cases:
            alone = module(fusion, dropout)
            joined = _single(alone, data(case))
            wanted = [None if p.grad is None else p.grad.clone() for p in alone.parameters()]
            alone.zero_grad()
            together = DistributedDataParallel(Step(alone), find_unused_parameters=True)
            loss = together(rows_of(data(case), rank, drop))
            loss.backward()
            note = functools.partial("{1}, dropout {0}: {2}".format, dropout, case)
            mean = all_reduce_sum(loss) / world_size()
            torch.testing.assert_close(mean, joined, **TIGHT, msg=note)
            for (name, parameter), expected in zip(alone.named_parameters(), wanted, strict=True):
                found = parameter.grad
                zero = torch.zeros_like(parameter)
                torch.testing.assert_close(
                    zero if found is None else found,
                    zero if expected is None else expected,
                    **TIGHT, msg=functools.partial(note, name),
                )  # fmt: skip


def _single(alone: FusionModule, batch: Batch) -> Tensor:
    """The loss of all samples as one process computes it, its gradients left in ``alone``."""
    fused = alone.fuse(batch, alone.model.modality_dropout)
    loss = torch.zeros((), dtype=torch.float64)
    for task in alone.tasks.values():
        for term in task.loss(fused).values():
            loss = loss + task.weight * term.weight * term.total / term.count
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize(
    ("fusion", "drop"),
    [("cross_attention", False), ("bottleneck", True), ("concat", True)],
)
def test_two_ranks(tmp_path, fusion, drop):
    run_ranks(equals_one_process, 2, tmp_path, fusion, drop)
