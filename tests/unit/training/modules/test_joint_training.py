"""Joint embeddings in training: in pieces, on several ranks, with keyed modality dropout."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from connected_cases import FEATURES, WIDTH, Letters, connected, head, ids, text_encoder
from gloo import run_ranks
from objective_cases import InBatch, InfoNCE
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from multimodal.core.batch import Batch
from multimodal.models.encoders.features import FeatureEncoder
from multimodal.models.fusion.latent import MergedFusion
from multimodal.models.fusion.pooled import GatedFusion
from multimodal.models.heads import LinearHead
from multimodal.models.joint.fused import FusedJoint
from multimodal.models.joint.template import TemplateJoint
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.objectives.candidates import AllRanks, Queue
from multimodal.objectives.objective import make_objective
from multimodal.training.modules.contrastive import ContrastiveModule

ROWS, DIM = 6, WIDTH
KINDS = ("embeddings", "tokens", "template")
PAIRS = {
    "both_depth": {"anchor": ["text", "image"], "other": "depth"},
    "image_depth": {"anchor": "image", "other": "depth"},
}


def towers() -> dict[str, Tower]:
    linear = partial(LinearHead, embed_dim=DIM, dropout=0.2)
    return {
        "text": Tower(text_encoder(), head(), frozen=True),
        "image": Tower(connected(), head()),
        "depth": Tower(FeatureEncoder(3, width=8), linear),
    }


def module(kind: str, pieces: int | None = None, dropout: float = 0.4, **more: Any) -> Any:
    torch.manual_seed(0)
    made: Any = {
        "embeddings": partial(FusedJoint, fusion=partial(GatedFusion, width=6)),
        "tokens": partial(
            FusedJoint, reads="tokens",
            fusion=partial(MergedFusion, width=8, num_heads=2, num_layers=1),
        ),
        "template": partial(
            TemplateJoint, tokenizer=Letters(), template="{image} with {text}", head=head()
        ),
    }[kind]  # fmt: skip
    joint = partial(made, modalities=["image", "text"], modality_dropout=dropout)
    model = EmbeddingModel(towers(), joint={"both": joint})
    for each in model.joint.values():
        if getattr(each, "project", None) is not None:
            torch.nn.init.normal_(each.project.weight)
    candidates = more.pop("candidates", AllRanks())
    objective = make_objective(PAIRS, InfoNCE(), InBatch(), candidates, embed_dim=DIM)
    return ContrastiveModule(
        model, objective, torch.optim.AdamW, None, 0.0, seed=1, micro_batch_size=pieces
    ).double()


def batch(rows: slice = slice(None), step: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(3)
    texts, mask = ids(7, 4, 5, 6, 7, 3)
    made = {
        "image": torch.randn(ROWS, FEATURES, dtype=torch.float64, generator=generator),
        "depth": torch.randn(ROWS, 3, dtype=torch.float64, generator=generator),
        "text": texts,
    }
    numbers = torch.arange(ROWS)
    return Batch(
        {name: value[rows] for name, value in made.items()}, {"text": mask[rows]},
        numbers[rows], numbers[rows], torch.zeros_like(numbers)[rows], "any", step,
    )  # fmt: skip


def loss_and_gradients(made: Any, given: Batch) -> list[Tensor]:
    for part in made.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0  # of a piece alone it would be another; a modality's is keyed
    loss = made.training_step(given, 0)
    loss.backward()
    gradients = [p.grad for p in made.parameters() if p.requires_grad]
    assert all(gradient is not None for gradient in gradients)
    return [loss.detach(), *gradients]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces", [1, 4])
def test_pieces_change_no_gradient(kind, pieces):
    expected = loss_and_gradients(module(kind).train(), batch())
    found = loss_and_gradients(module(kind, pieces).train(), batch())
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def two_ranks(rank: int, kind: str, expected: list[Tensor]) -> None:
    made = module(kind, 2).train()
    for part in made.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    made.forward = made.training_step  # DDP calls forward
    parallel = DistributedDataParallel(made, find_unused_parameters=False)
    rows = slice(0, 4) if rank == 0 else slice(4, ROWS)
    parallel(batch(rows), 0).backward()
    gradients = [p.grad for p in made.parameters() if p.requires_grad]
    for one, other in zip(expected[1:], gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokens", "template"])
def test_two_ranks_equal_one_process(kind, tmp_path: Path):
    expected = loss_and_gradients(module(kind).train(), batch())
    run_ranks(two_ranks, 2, tmp_path, kind, expected)


def test_what_is_left_out_depends_on_seed_step_and_sample_alone():
    made = module("embeddings").train()
    seen: list[dict[str, Tensor]] = []
    joint = made.model.joint.of("image&text")
    kept = joint.from_embeddings
    joint.from_embeddings = lambda e, presence: (seen.append(presence), kept(e, presence))[1]
    made.embed(batch())
    made.embed(batch())
    made.embed(batch(step=4))
    made.eval().embed(batch())
    first, again, later, evaluated = seen
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], later[name]) for name in first)
    assert evaluated == {}
    assert not (first["image"] & first["text"]).all()
    assert (first["image"] | first["text"]).all()


def test_a_queue_and_a_validation_take_it_like_any_other():
    made = module("embeddings", candidates=Queue(8)).train()
    made.training_step(batch(), 0)
    made.objective.update_queues()
    rows, _ = made.objective.pairs["both_depth"].queues["image&text"].content()
    made.eval()
    made.validation_step(batch(), 0)
    kept = made._validation["any"]
    assert set(kept) == {"positive_keys", "image&text", "depth", "image"}
    assert rows.shape[1] == DIM


def test_ddp_is_told_which_sources_leave_it_unused():
    made = module("embeddings")
    made.model.towers["text"].encoder = FeatureEncoder(3, width=WIDTH)
    assert not made.may_leave_unused({"any": ["image", "text", "depth"]})
    assert made.may_leave_unused({"any": ["image", "text", "depth"], "less": ["image", "depth"]})
