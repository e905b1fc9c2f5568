"""Matching: which negatives are drawn, what the loss sums, how candidates are ranked."""

import pytest
import torch
from task_helpers import WIDTH, fused, parts
from torch.nn import functional as F

from multimodal.models.fusion.base import FusionOutput
from multimodal.models.tasks.matching import Matching


def make(**options):
    torch.manual_seed(0)
    return Matching(parts(), "image", "text", **options).double()


def add(encoded, presence):
    """A fusion that tells which features met."""
    image, text = encoded["image"].features, encoded["text"].features
    features = F.pad(image, (0, WIDTH - image.shape[1])) * F.pad(text, (0, WIDTH - text.shape[1]))
    return FusionOutput(features, features[:, None], torch.ones(len(image), 1), {"image": (0, 1)})


def by_hand(task, batch, i, j):
    """Logits of image i with text j."""
    image, text = batch.encoded["image"].features[i], batch.encoded["text"].features[j]
    product = F.pad(image, (0, WIDTH - len(image))) * F.pad(text, (0, WIDTH - len(text)))
    return task.head(product)


def test_the_loss_is_over_right_pairs_and_both_kinds_of_wrong_ones():
    task = make()
    keys = torch.tensor([0, 1, 2, 1, 3, 4])
    batch = fused({}, count=6, keys=keys, fuse=add, key=5)
    rows = torch.arange(6)
    seconds, firsts, any_wrong = task.negatives(batch, rows)
    assert any_wrong.all()
    assert (keys[seconds] != keys).all()
    assert (keys[firsts] != keys).all()
    term = task.loss(batch)["match"]
    expected = 0.0
    for i in range(6):
        expected -= by_hand(task, batch, i, i).log_softmax(0)[1]
        expected -= by_hand(task, batch, i, int(seconds[i])).log_softmax(0)[0]
        expected -= by_hand(task, batch, int(firsts[i]), i).log_softmax(0)[0]
    assert term.total.item() == pytest.approx(float(expected), rel=1e-9)
    assert term.count.item() == 18


def test_a_missing_side_and_a_batch_of_one_key():
    task = make()
    there = torch.tensor([True, False, True, True, True])
    keys = torch.tensor([7, 7, 7, 7, 7])
    batch = fused({}, {"text": there}, keys=keys, fuse=add)
    term = task.loss(batch)["match"]
    assert term.count.item() == 4  # right pairs only: nothing is wrong here
    assert task.loss(fused({}, absent=("text",), fuse=add)) == {}
    assert task.observe(batch) == {}


@pytest.mark.heavy
def test_negatives_are_drawn_by_a_softmax_of_similarity():
    torch.manual_seed(1)
    image = F.normalize(torch.randn(6, 8, dtype=torch.float64), dim=1)
    text = F.normalize(torch.randn(6, 8, dtype=torch.float64), dim=1)
    keys = torch.tensor([0, 1, 2, 3, 3, 4])
    task = make(temperature=0.5)
    counts = torch.zeros(2, 6, 6)
    draws = 3000
    for key in range(draws):
        batch = fused({}, count=6, keys=keys, embeddings={"image": image, "text": text}, key=key)
        seconds, firsts, _ = task.negatives(batch, torch.arange(6))
        counts[0, torch.arange(6), seconds] += 1
        counts[1, torch.arange(6), firsts] += 1
    scores = (image @ text.T / 0.5).masked_fill(keys[:, None] == keys, -torch.inf)
    for found, wanted in zip(counts / draws, (scores, scores.T), strict=True):
        assert (found - wanted.softmax(dim=1)).abs().max() < 0.04  # 4 deviations of a share


def test_cold_draws_are_the_hardest_and_none_depends_on_the_place_in_the_batch():
    torch.manual_seed(1)
    image, text = (F.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    batch = fused({}, count=6, embeddings={"image": image, "text": text})
    hardest = (image @ text.T).fill_diagonal_(-torch.inf)
    seconds, firsts, _ = make(temperature=1e-4).negatives(batch, torch.arange(6))
    assert torch.equal(seconds, hardest.argmax(dim=1))
    assert torch.equal(firsts, hardest.argmax(dim=0))
    task = make()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    before = task.negatives(batch, torch.arange(6))
    after = task.negatives(batch, order)
    for one, other in zip(before[:2], after[:2], strict=True):
        assert torch.equal(order[other], one[order])


def test_the_loss_does_not_reach_the_draw_and_does_reach_the_fusion():
    image = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    text = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    batch = fused({}, fuse=add, embeddings={"image": image, "text": text})
    make().loss(batch)["match"].total.backward()
    assert image.grad is None
    assert batch.encoded["image"].features.grad.abs().sum() > 0


def test_candidates_are_the_own_one_and_those_that_follow_of_other_keys():
    task = make(candidates=3)
    keys = torch.tensor([0, 0, 1, 2, 3])
    batch = fused({}, keys=keys, fuse=add)
    margin = task.observe(batch)["margin"]
    columns = [[0, 2, 3], [1, 2, 3], [2, 3, 4], [3, 4, 0], [4, 0, 1]]
    for i, row in enumerate(columns):
        for place, j in enumerate(row):
            said = by_hand(task, batch, i, j)
            assert margin[i, place].item() == pytest.approx((said[1] - said[0]).item())


def test_scores_of_known_margins():
    margin = torch.tensor([[2.0, 1.0, -1.0], [1.0, 1.0, 0.5], [-1.0, 0.0, -2.0]])
    scores = make(candidates=3).score({"margin": margin})
    assert scores.values["first"] == pytest.approx((1 + 0.5 + 0) / 3)  # a tie counts half
    # right: 2 of 3 above zero; wrong: -1, 0 and -2 of six are not
    assert scores.values["accuracy"] == pytest.approx((2 / 3 + 3 / 6) / 2)
    assert scores.values["auc"] == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 1) / 6)
    assert scores.chance == {"first": pytest.approx(1 / 3), "accuracy": 0.5, "auc": 0.5}


@pytest.mark.parametrize(
    "options", [{"first": "image", "second": "image"}, {"temperature": 0.0}, {"candidates": 1}]
)
def test_invalid_arguments_are_rejected(options):
    with pytest.raises(ValueError, match="two different modalities"):
        Matching(parts(), **{"first": "image", "second": "text", **options})
    with pytest.raises(ValueError, match="'audio' in the fusion, which reads image, text"):
        Matching(parts(), "audio", "text")
