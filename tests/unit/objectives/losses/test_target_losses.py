"""Target losses against loops, and pairs whose one side is a fixed target."""

from __future__ import annotations

import math

import pytest
import torch
from gloo import run_ranks
from objective_cases import batch, case
from omegaconf import OmegaConf

from multimodal.inference.checkpoint.weights import pair_temperatures
from multimodal.objectives.candidates import AllRanks
from multimodal.objectives.interfaces import compatible
from multimodal.objectives.losses.softmax import InfoNCE
from multimodal.objectives.losses.target import CosineTarget, SquaredTarget
from multimodal.objectives.negatives.reweighting import Reweighted
from multimodal.objectives.negatives.selection import InBatch
from multimodal.objectives.objective import ContrastiveObjective, make_objective

LOSSES = [CosineTarget(), SquaredTarget()]
FORMULAS = [
    lambda a, t: 1 - float(a @ t),
    lambda a, t: sum((float(x) - float(y)) ** 2 for x, y in zip(a, t, strict=True)),
]


def objective(loss, **choices) -> ContrastiveObjective:
    given = {"anchor": "image", "other": "text", "logit_scale": {"init": 10.0}, **choices}
    made = make_objective({"image_text": given}, loss, InBatch(), AllRanks())
    return made.double()


def evaluate(made: ContrastiveObjective, drawn):
    embeddings = {name: rows.requires_grad_() for name, rows in drawn.embeddings().items()}
    output = made(embeddings, drawn.sample_ids, drawn.positive_keys, 0, 0, "s")
    output.loss.backward()
    return output, embeddings


@pytest.mark.parametrize(
    ("loss", "formula"), list(zip(LOSSES, FORMULAS, strict=True)), ids=["cosine", "mse"]
)
@pytest.mark.parametrize("repeated", ["nothing", "keys"])
def test_every_sample_is_pulled_to_its_own_target(loss, formula, repeated):
    drawn = batch(0, 7, repeated=repeated)
    expected = sum(formula(a, t) for a, t in zip(drawn.image, drawn.text, strict=True)) / 7
    output, embeddings = evaluate(objective(loss, stop_gradient="text"), drawn)
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-12)
    factor = {CosineTarget: -1, SquaredTarget: -2}[type(loss)]
    torch.testing.assert_close(embeddings["image"].grad, factor * drawn.text.detach() / 7)
    assert embeddings["text"].grad is None
    assert float(output.metrics["without_negatives/image_text"]) == 0


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_of_a_block_it_is_the_mean_over_positives(loss):
    drawn = case(0, num_positives=3)
    none = torch.zeros_like(drawn.similarities)
    values = loss(drawn.similarities, torch.tensor(5.0), torch.tensor(0.0), drawn.positives, none)
    for value, row, positives in zip(values, drawn.similarities, drawn.positives, strict=True):
        factor = {CosineTarget: 1, SquaredTarget: 2}[type(loss)]
        terms = [factor * (1 - float(s)) for s in row[positives]]
        assert float(value) == pytest.approx(sum(terms) / 3)


@pytest.mark.parametrize("side", ["image", "text"])
def test_with_any_loss_a_target_has_no_gradient_and_the_other_side_the_same(side):
    drawn = batch(1, 6)
    free, loose = evaluate(objective(InfoNCE()), drawn)
    grads = {name: rows.grad.clone() for name, rows in loose.items()}
    drawn = batch(1, 6)
    fixed, held = evaluate(objective(InfoNCE(), stop_gradient=side), drawn)
    assert torch.equal(fixed.loss, free.loss)
    target, learner = ("image", "text") if side == "image" else ("text", "image")
    assert held[target].grad is None
    torch.testing.assert_close(held[learner].grad, grads[learner])


def test_the_modalities_that_learn_are_those_that_are_no_target():
    made = make_objective(
        {
            "pull": {"anchor": "image", "other": "text", "stop_gradient": "text"},
            "pair": {"anchor": "audio", "other": "text", "sources": ["sounds"]},
        },
        CosineTarget(), InBatch(), AllRanks(),
    )  # fmt: skip
    names = ["image", "text", "audio"]
    assert made.moved(names, "photos") == {"image"}
    assert made.moved(names, "sounds") == {"image", "text", "audio"}


def on_a_rank(rank: int, folder: str) -> None:
    part = batch(2, 7)[slice(0, 5) if rank == 0 else slice(5, 7)]
    output, embeddings = evaluate(objective(CosineTarget(), stop_gradient="text"), part)
    torch.save([output.loss.detach(), embeddings["image"].grad / 2], f"{folder}/{rank}.pt")


def test_two_ranks_of_different_sizes_are_one_process(tmp_path):
    output, embeddings = evaluate(objective(CosineTarget(), stop_gradient="text"), batch(2, 7))
    run_ranks(on_a_rank, 2, tmp_path, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close((ranks[0][0] + ranks[1][0]) / 2, output.loss.detach())
    torch.testing.assert_close(torch.cat([rows for _, rows in ranks]), embeddings["image"].grad)


def test_a_strategy_that_weights_negatives_is_refused():
    assert compatible(CosineTarget(), InBatch()) is None
    assert "has no weights" in str(compatible(CosineTarget(), Reweighted(beta=1.0)))


def test_a_target_says_nothing_of_the_temperature():
    ends = {"anchor": "image", "other": "text"}
    target = {**ends, "loss": {"_target_": "multimodal.objectives.CosineTarget"}}
    cfg = OmegaConf.create({"pairs": {"learned": ends, "pull": target}})
    weights = {
        "objective.pairs.learned.logit_scale": torch.tensor(math.log(20.0)),
        "objective.pairs.pull.logit_scale": torch.tensor(0.0),
    }
    assert pair_temperatures(cfg, weights) == {frozenset(ends.values()): pytest.approx(0.05)}
