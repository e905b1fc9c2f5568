"""The objective against the whole matrix in plain autograd, for every combination and path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from marks import some
from objective_cases import (
    LOSSES,
    batch,
    compatible_choices,
    dense_objective,
    gradients,
    one_pair_objective,
)
from torch.nn import functional as F

from multimodal.objectives import matches, pair
from multimodal.objectives.candidates import AllRanks, Local, Queue
from multimodal.objectives.kernels import blockwise, torch_tiles
from multimodal.objectives.losses.margin import Hinge, Triplet
from multimodal.objectives.losses.sigmoid import SigLIP
from multimodal.objectives.losses.softmax import DCL, InfoNCE, SupCon
from multimodal.objectives.negatives.reweighting import Debiased
from multimodal.objectives.negatives.selection import Hard, InBatch, Random, SemiHard
from multimodal.objectives.objective import make_objective

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "losses.json").read_text())
CANDIDATES = [AllRanks(), Local(), Queue(size=8)]
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def run(objective, data, step=2, seed=1):
    return objective(
        data.embeddings(), data.sample_ids, data.positive_keys, step=step, seed=seed, source="s"
    )


def assert_equals_dense(objective, data):
    data.image.requires_grad_()
    data.text.requires_grad_()
    ours, dense = run(objective, data).loss, dense_objective(objective, data)
    torch.testing.assert_close(ours, dense, **TIGHT)
    torch.testing.assert_close(
        gradients(ours, objective, data), gradients(dense, objective, data), **TIGHT
    )


@pytest.mark.parametrize("candidates", some(CANDIDATES, len(CANDIDATES)), ids=str)
@pytest.mark.parametrize(("loss", "strategy"), compatible_choices(), ids=str)
def test_every_combination_equals_the_whole_matrix(loss, strategy, candidates):
    for seed, repeated, chunk_size in ((0, "nothing", 3), (1, "keys", None), (2, "most keys", 1)):
        objective = one_pair_objective(loss, strategy, candidates, chunk_size)
        assert_equals_dense(objective, batch(seed, 7, repeated=repeated))


@pytest.mark.parametrize(("loss", "strategy"), compatible_choices(), ids=str)
def test_equal_keys_may_be_ignored(loss, strategy):
    for repeated in ("keys", "most keys"):
        objective = one_pair_objective(loss, strategy, equal_keys="ignored")
        assert_equals_dense(objective, batch(3, 7, repeated=repeated))


@pytest.mark.parametrize("locked", ["image", "text"])
@pytest.mark.parametrize(("loss", "strategy"), compatible_choices(), ids=str)
def test_a_locked_side_gets_no_gradient_and_changes_no_other(loss, strategy, locked):
    data = batch(5, 7, repeated="keys")
    data.image.requires_grad_()
    data.text.requires_grad_()
    both = one_pair_objective(loss, strategy)
    one = one_pair_objective(loss, strategy, stop_gradient=locked)
    expected, value = run(both, data).loss, run(one, data).loss
    assert torch.equal(value, expected)
    wanted = gradients(expected, both, data)
    wanted[("image", "text").index(locked)].zero_()
    torch.testing.assert_close(gradients(value, one, data), wanted, **TIGHT)
    assert one.moved(["image", "text"], "s") == {"image", "text"} - {locked}


def test_a_locked_side_is_one_of_the_two():
    with pytest.raises(ValueError, match="must be 'image' or 'text', or null, given 'audio'"):
        one_pair_objective(InfoNCE(), InBatch(), stop_gradient="audio")


@pytest.mark.parametrize("candidates", CANDIDATES, ids=str)
@pytest.mark.parametrize(("loss", "strategy"), compatible_choices(), ids=str)
def test_the_order_of_the_batch_does_not_matter(loss, strategy, candidates):
    objective = one_pair_objective(loss, strategy, candidates)
    data = batch(4, 7, repeated="keys")
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    data.image.requires_grad_()
    data.text.requires_grad_()
    losses = [run(objective, data).loss, run(objective, data[order]).loss]
    torch.testing.assert_close(*losses, **TIGHT)
    torch.testing.assert_close(*(gradients(x, objective, data) for x in losses), **TIGHT)


SPECIAL = [
    (InfoNCE(), InBatch()),
    (InfoNCE(directions="sum"), InBatch()),
    (DCL(), InBatch()),
    (SigLIP(), InBatch()),
    (Triplet(), Hard(k=1)),
    (InfoNCE(), Hard(k=3)),
    (InfoNCE(), Hard(k=3, skip=2)),
    (InfoNCE(), Hard(k=40, skip=20)),
    (SigLIP(), Hard(k=3)),
    (Hinge(hardest=True), InBatch()),
]


@pytest.mark.parametrize(("loss", "strategy"), SPECIAL, ids=str)
@pytest.mark.parametrize("repeated", ["nothing", "keys"])
@pytest.mark.parametrize("scale", [10.0, 100.0])
def test_quick_paths_across_tiles(loss, strategy, repeated, scale, monkeypatch):
    """Many small tiles, panels and blocks; 100 is beyond what may be summed without a maximum."""
    monkeypatch.setattr(torch_tiles, "CPU_TILE", 16)
    for module in ("blockwise", "hardest"):
        monkeypatch.setattr(f"multimodal.objectives.kernels.{module}.BLOCK_ENTRIES", 600)
    monkeypatch.setattr(pair, "chunked_direction", None)  # not the general path
    monkeypatch.setattr(matches, "ROWS", 10)
    objective = one_pair_objective(loss, strategy, logit_scale={"init": scale})
    assert_equals_dense(objective, batch(0, 75, repeated=repeated))
    assert_equals_dense(
        one_pair_objective(loss, strategy, equal_keys="ignored"), batch(1, 75, repeated=repeated)
    )


@pytest.mark.parametrize(("loss", "strategy"), SPECIAL[:-1], ids=str)
def test_quick_paths_agree_on_ties(loss, strategy):
    """Equal similarities: the smaller id is chosen, as on the general path.

    Not so the gradient of a plain maximum, which autograd shares out among equals.
    """
    data = batch(0, 40)
    corners = F.normalize(torch.ones(2, 6, dtype=torch.float64), dim=1) * torch.tensor([[1], [-1]])
    data.image, data.text = corners[torch.arange(40) % 2], corners[torch.arange(40) // 2 % 2]
    data.text[::7] *= -1
    assert_equals_dense(one_pair_objective(loss, strategy), data)


def test_many_repeats_take_the_general_path(monkeypatch):
    monkeypatch.setattr(pair, "fused_sum", None)
    assert_equals_dense(
        one_pair_objective(InfoNCE(), InBatch()), batch(0, 20, repeated="most keys")
    )


@pytest.mark.parametrize("case", VECTORS)
@pytest.mark.parametrize("loss", ["clip", "siglip"])
@pytest.mark.parametrize("path", ["fused", "general"])
def test_vectors(case, loss, path, monkeypatch):
    expected = VECTORS[case]
    size, dim = map(int, case.split("_"))
    rng = np.random.default_rng(expected["seed"])
    x, y = (torch.from_numpy(rng.standard_normal((size, dim))) for _ in range(2))
    x, y = (F.normalize(side, dim=1).requires_grad_() for side in (x, y))
    choice, bias = (InfoNCE(), None) if loss == "clip" else (SigLIP(), expected["bias"])
    if path == "general":
        monkeypatch.setattr(pair, "has_fused_kernel", lambda *_: False)
    else:
        monkeypatch.setattr(pair, "chunked_direction", None)
    objective = make_objective(
        {"xy": {"anchor": "x", "other": "y", "logit_bias": bias}}, choice, InBatch(), AllRanks()
    ).double()
    learned = objective.pairs["xy"]
    scale = torch.tensor(expected["scale"], dtype=torch.float64)
    learned.logit_scale.data = scale.log()
    ids = torch.arange(size)
    output = objective({"x": x, "y": y}, ids, ids, step=0, seed=0, source="s")
    output.loss.backward()
    found = {
        "": output.loss,
        "_gx": x.grad.norm(),
        "_gy": y.grad.norm(),
        "_gscale": learned.logit_scale.grad / scale,
    }
    if loss == "siglip":
        found["_gbias"] = learned.logit_bias.grad
    for name, value in found.items():
        assert value.item() == pytest.approx(expected[loss + name], rel=1e-10, abs=1e-10), name


@pytest.mark.parametrize(("loss", "strategy"), compatible_choices(), ids=str)
def test_without_negatives_and_equal_embeddings(loss, strategy):
    data = batch(0, 4)
    data.positive_keys[:] = 1
    data.image[:], data.text[:] = data.image[0].clone(), data.image[0].clone()
    data.image.requires_grad_()
    data.text.requires_grad_()
    objective = one_pair_objective(loss, strategy)
    output = run(objective, data)
    directions = 1 if loss.directions == "once" else 2
    assert output.metrics["without_negatives/image_text"] == 4 * directions
    if isinstance(loss, InfoNCE | DCL | Triplet | Hinge):
        assert output.loss == 0
    for data_with_negatives in (data, _distinct(data)):
        loss_value = run(objective, data_with_negatives).loss
        assert loss_value.isfinite()
        assert all(g.isfinite().all() for g in gradients(loss_value, objective, data))


def _distinct(data):
    data.positive_keys = data.sample_ids
    return data


@pytest.mark.parametrize(("loss", "strategy"), compatible_choices(), ids=str)
def test_nan_comes_through(loss, strategy):
    data = batch(0, 6)
    data.text[2, 1] = torch.nan
    assert run(one_pair_objective(loss, strategy), data).loss.isnan()


def test_counts_what_a_strategy_leaves_without_negatives():
    data = batch(0, 6)
    skips_all = one_pair_objective(InfoNCE(), Hard(k=2, skip=5))
    assert run(skips_all, data).metrics["without_negatives/image_text"] == 12
    assert run(skips_all, data).loss == 0
    semi_hard = one_pair_objective(Triplet(), SemiHard())
    assert run(semi_hard, data).metrics["without_negatives/image_text"] == 0


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_fewer_than_two_candidates_are_rejected(loss):
    with pytest.raises(ValueError, match=r"data\.batch_size.*candidates=queue"):
        run(one_pair_objective(loss, InBatch()), batch(0, 1))
    output = run(one_pair_objective(loss, InBatch(), Queue(size=8)), batch(0, 1))  # 5 are queued
    assert output.loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_logits_stay_in_float32_under_autocast(loss, dtype):
    data = batch(0, 16)
    data.image, data.text = data.image.float(), data.text.float()
    objective = one_pair_objective(loss, InBatch()).float()
    plain = run(objective, data).loss
    with torch.autocast("cpu", dtype):
        inside = run(objective, data).loss
    assert inside.dtype == torch.float32
    assert inside == plain
    data.image, data.text = data.image.to(dtype), data.text.to(dtype)
    data.image.requires_grad_()
    half = run(objective, data).loss
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0.05, atol=0.02)
    assert torch.autograd.grad(half, data.image)[0].dtype == dtype


@pytest.mark.parametrize("loss", [InfoNCE(), SigLIP(), SupCon(), DCL()], ids=str)
@pytest.mark.parametrize("strategy", [InBatch(), Hard(k=2)], ids=str)
def test_logit_scale_ends_clamped(loss, strategy):
    objective = one_pair_objective(loss, strategy).float()
    learned = objective.pairs["image_text"]
    with torch.no_grad():
        learned.logit_scale.fill_(np.log(1e4))
    data = batch(0, 8)
    data.image, data.text = data.image.float(), data.text.float()
    data.image.requires_grad_()
    objective.eval()
    assert run(objective, data).metrics["logit_scale/image_text"].item() == pytest.approx(100)
    objective.train()
    output = run(objective, data)
    output.loss.backward()
    assert learned.logit_scale.exp().item() == pytest.approx(100)
    assert learned.logit_scale.grad.isfinite()
    assert learned.logit_scale.grad != 0  # at the bound it can still move down
    assert output.loss.isfinite()
    assert data.image.grad.isfinite().all()


def test_fixed_scale_gets_no_gradient():
    objective = one_pair_objective(
        InfoNCE(), InBatch(), logit_scale={"init": 20.0, "learned": False}
    )
    assert not objective.pairs["image_text"].logit_scale.requires_grad
    data = batch(0, 5)
    data.image.requires_grad_()
    run(objective, data).loss.backward()
    assert data.image.grad.norm() > 0
    assert data.text.grad is None


def test_random_negatives_change_with_the_step_and_the_seed():
    data = batch(0, 12)
    objective = one_pair_objective(InfoNCE(), Random(k=2))
    losses = [run(objective, data, step, seed).loss for step, seed in ((0, 0), (1, 0), (0, 1))]
    assert len({loss.item() for loss in losses}) == 3
    assert run(objective, data, 0, 0).loss == losses[0]


def test_pairs_have_their_own_choices_weight_and_sources():
    pairs = {
        "image_text": {"anchor": "image", "other": "text", "weight": 2.0},
        "image_audio": {
            "anchor": "image",
            "other": "audio",
            "loss": SigLIP(),
            "logit_bias": -3.0,
            "sources": ["sounds"],
        },
        "taken_out": None,
    }
    objective = make_objective(pairs, InfoNCE(), InBatch(), AllRanks()).double()
    assert objective.modalities(["audio", "depth", "image", "text"], "sounds") == [
        "audio",
        "image",
        "text",
    ]
    assert objective.modalities(["audio", "image"], "emoji") == []
    data = batch(0, 6)
    embeddings = {**data.embeddings(), "audio": batch(1, 6).text}
    args = (embeddings, data.sample_ids, data.positive_keys, 0, 0)
    both, one = objective(*args, "sounds"), objective(*args, "emoji")
    torch.testing.assert_close(one.loss, 2 * one.metrics["loss/image_text"])
    torch.testing.assert_close(
        both.loss, 2 * both.metrics["loss/image_text"] + both.metrics["loss/image_audio"]
    )
    with pytest.raises(ValueError, match="no pair relates two of the modalities"):
        objective({"text": data.text}, data.sample_ids, data.positive_keys, 0, 0, "emoji")


def test_metrics():
    data = batch(0, 6)
    data.text = data.image.clone()
    data.text[0], data.text[1] = data.image[1], data.image[0]
    metrics = run(one_pair_objective(InfoNCE(), InBatch()), data).metrics
    similarities = data.image @ data.text.T
    off_diagonal = similarities.masked_fill(torch.eye(6, dtype=torch.bool), -2)
    assert metrics["accuracy/image_text"].item() == pytest.approx(4 / 6)
    torch.testing.assert_close(
        metrics["positive_similarity/image_text"], similarities.diagonal().mean()
    )
    torch.testing.assert_close(
        metrics["hardest_negative_similarity/image_text"], off_diagonal.amax(1).mean()
    )
    assert metrics["logit_scale/image_text"].item() == pytest.approx(1 / 0.07)
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1.0}, r"pairs\.p: weight must be at least 0"),
        ({"logit_scale": {"init": 200.0}}, r"pairs\.p: logit_scale\.init must be above 0"),
        ({"logit_scale": {"start": 2.0}}, r"pairs\.p: .*'start'"),
        ({"logit_bias": -10.0}, r"pairs\.p: InfoNCE has no bias"),
        ({"equal_keys": "negatives"}, r"pairs\.p: equal_keys must be"),
        ({"temperature": 0.1}, r"pairs\.p: .*'temperature'"),
        ({"loss": Triplet(), "negatives": Debiased()}, r"pairs\.p: negatives Debiased with loss"),
        ({"candidates": Queue(size=4)}, r"pairs\.p: a queue needs embed_dim"),
    ],
)
def test_refuses(changes, message):
    pairs = {"p": {"anchor": "a", "other": "b", **changes}}
    with pytest.raises(ValueError, match=message):
        make_objective(pairs, InfoNCE(), InBatch(), AllRanks())


def test_blocks_hold_no_more_than_asked(monkeypatch):
    """Memory: no block sees more rows than the chunk size, and by default than the budget."""
    seen = []
    original = blockwise.Direction.rows

    def watch(direction):
        for rows in original(direction):
            seen.append(rows.stop - rows.start)
            yield rows

    monkeypatch.setattr(blockwise.Direction, "rows", watch)
    run(one_pair_objective(SupCon(), InBatch(), chunk_size=3), batch(0, 10))
    assert seen == [3, 3, 3, 1] * 2
    seen.clear()
    monkeypatch.setattr("multimodal.objectives.kernels.blockwise.BLOCK_ENTRIES", 45)
    run(one_pair_objective(SupCon(), InBatch()), batch(0, 10))
    assert seen == [4, 4, 2] * 2
