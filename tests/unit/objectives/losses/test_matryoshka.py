"""Matryoshka against the whole matrix of every prefix, in float64: values and every gradient."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from gloo import run_ranks
from objective_cases import (
    Batch,
    batch,
    compatible_choices,
    dense_objective,
    gradients,
    one_pair_objective,
)
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from multimodal.core.distributed import all_reduce_sum, world_size
from multimodal.models.gradient_caching import encode_microbatched
from multimodal.objectives.candidates import AllRanks, Queue
from multimodal.objectives.losses.matryoshka import Matryoshka
from multimodal.objectives.losses.softmax import InfoNCE
from multimodal.objectives.losses.target import CosineTarget
from multimodal.objectives.negatives.selection import Hard, InBatch
from multimodal.objectives.objective import make_objective

DIMS, WEIGHTS = [2, 3, 6], [1.0, 0.0, 3.0]
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def cut(data: Batch, dim: int) -> Batch:
    """Unit prefixes; the whole rows are of unit norm as they are."""
    if dim == DIMS[-1]:
        return data
    image, text = (
        rows[:, :dim] / rows[:, :dim].norm(dim=1, keepdim=True) for rows in (data.image, data.text)
    )
    return Batch(image, text, data.sample_ids, data.positive_keys)


def by_hand(objective, data: Batch, weights=None) -> torch.Tensor:
    """Every prefix over its whole matrix, in plain autograd."""
    total = torch.zeros((), dtype=torch.float64)
    pair = objective.pairs["image_text"]
    for dim, weight in zip(DIMS, weights or [1.0] * 3, strict=True):
        narrow = copy.deepcopy(objective)
        narrow.pairs["image_text"].logit_scale = pair.logit_scale
        narrow.pairs["image_text"].logit_bias = pair.logit_bias
        for queue in narrow.pairs["image_text"].queues.values():
            rows = queue.embeddings[:, :dim]
            if dim < DIMS[-1]:
                queue.embeddings = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
        total = total + weight * dense_objective(narrow, cut(data, dim))
    return total / sum(weights or [1.0] * 3)


def drawn(size: int = 7, repeated: str = "nothing") -> Batch:
    data = batch(3, size, repeated=repeated)
    data.image.requires_grad_(), data.text.requires_grad_()
    return data


def evaluate(objective, data: Batch):
    return objective(data.embeddings(), data.sample_ids, data.positive_keys, 2, 1, "source")


@pytest.mark.parametrize(
    ("queue", "repeated"),
    [
        pytest.param(False, "nothing", id="all_ranks"),
        pytest.param(True, "keys", id="queue", marks=pytest.mark.slow),
    ],
)
def test_every_combination_is_the_mean_over_prefixes(queue, repeated):
    candidates = Queue(size=8) if queue else AllRanks()
    for loss, strategy in compatible_choices():
        objective = one_pair_objective(Matryoshka(loss, DIMS), strategy, candidates)
        data = drawn(repeated=repeated)
        value, expected = evaluate(objective, data).loss, by_hand(objective, data)
        note = partial("{0} {1}: {2}".format, loss, strategy)
        torch.testing.assert_close(value, expected, **TIGHT, msg=note)
        found, wanted = (gradients(each, objective, data) for each in (value, expected))
        torch.testing.assert_close(found, wanted, **TIGHT, msg=note)


def test_weights_are_of_the_widths():
    objective = one_pair_objective(Matryoshka(InfoNCE(), DIMS, WEIGHTS), InBatch())
    data = drawn()
    value, expected = evaluate(objective, data).loss, by_hand(objective, data, WEIGHTS)
    torch.testing.assert_close(value, expected, **TIGHT)
    found, wanted = (gradients(each, objective, data) for each in (value, expected))
    torch.testing.assert_close(found, wanted, **TIGHT)


@pytest.mark.parametrize("strategy", [InBatch(), Hard(k=2)], ids=["tiled", "mined"])
def test_the_whole_width_alone_is_the_loss_itself_whatever_the_chunks(strategy):
    data = drawn(11, "keys")
    plain = evaluate(one_pair_objective(InfoNCE(), strategy), data)
    for chunk in (None, 2):
        wrapped = one_pair_objective(Matryoshka(InfoNCE(), [6]), strategy, chunk_size=chunk)
        output = evaluate(wrapped, data)
        torch.testing.assert_close(output.loss, plain.loss, **TIGHT)
        assert output.metrics["accuracy/image_text"] == plain.metrics["accuracy/image_text"]
        without = "without_negatives/image_text"
        assert output.metrics[without] == plain.metrics[without]


def test_a_target_is_compared_prefix_by_prefix():
    objective = one_pair_objective(Matryoshka(CosineTarget(), DIMS), InBatch())
    data = drawn(5)
    parts = [cut(data, dim) for dim in DIMS]
    expected = sum((1 - (part.image * part.text).sum(1)).mean() for part in parts) / 3
    torch.testing.assert_close(evaluate(objective, data).loss, expected, **TIGHT)


class Towers(nn.Module):
    """Two linear towers, encoded in pieces, under an objective."""

    def __init__(self, objective: nn.Module, size: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.towers = nn.ModuleDict({name: nn.Linear(6, 6) for name in ("image", "text")}).double()
        self.objective, self.size = objective, size

    def embed(self, data: Batch) -> Batch:
        def encode(name):
            return lambda inputs, _: F.normalize(self.towers[name](inputs), dim=1)

        image, text = (
            encode_microbatched(encode(name), inputs, None, self.size)
            for name, inputs in data.embeddings().items()
        )
        return Batch(image, text, data.sample_ids, data.positive_keys)

    def forward(self, data: Batch):
        return evaluate(self.objective, self.embed(data)).loss


def equals_one_process(rank: int) -> None:
    sizes = (5, 2)
    data = batch(0, 7, repeated="keys")
    for loss, strategy in ((InfoNCE(), InBatch()), (InfoNCE(), Hard(k=2))):
        for size in (None, 2):
            alone = Towers(one_pair_objective(Matryoshka(loss, DIMS), strategy), size)
            expected = by_hand(alone.objective, alone.embed(data))
            wanted = torch.autograd.grad(expected, list(alone.parameters()))
            start = sum(sizes[:rank])
            together = DistributedDataParallel(alone)
            value = together(data[start : start + sizes[rank]])
            value.backward()
            torch.testing.assert_close(all_reduce_sum(value) / world_size(), expected, **TIGHT)
            found = [parameter.grad for parameter in alone.parameters()]
            torch.testing.assert_close(found, list(wanted), **TIGHT)


@pytest.mark.heavy
def test_two_ranks_and_gradient_caching_are_one_process_on_the_joined_batch(tmp_path):
    run_ranks(equals_one_process, 2, tmp_path)


def test_the_experiments_widths_wrap_every_loss_but_one_that_has_its_own():
    pairs = {
        "plain": {"anchor": "a", "other": "b"},
        "own": {"anchor": "a", "other": "b", "loss": Matryoshka(InfoNCE(), [4, 6])},
    }
    given = {"dims": [2, 6], "weights": None}
    parts = (InfoNCE(), InBatch(), AllRanks(), 6)
    made = make_objective(pairs, *parts, matryoshka=given).pairs
    assert [list(made[name].matryoshka.dims) for name in pairs] == [[2, 6], [4, 6]]
    bare = make_objective({"plain": pairs["plain"]}, *parts, matryoshka={"dims": None}).pairs
    assert bare["plain"].matryoshka is None


@pytest.mark.parametrize(
    ("dims", "weights", "said"),
    [
        ([], None, "ascend"), ([0, 6], None, "ascend"), ([6, 3], None, "ascend"),
        ([3, 3, 6], None, "ascend"), ([3, 6], [1.0], "1 numbers for 2 dims"),
        ([3, 6], [0.0, 0.0], "not all 0"), ([3, 6], [-1.0, 2.0], "at least 0"),
    ],
)  # fmt: skip
def test_widths_and_weights_that_cannot_be(dims, weights, said):
    with pytest.raises(ValueError, match=said):
        Matryoshka(InfoNCE(), dims, weights)


def test_the_widest_is_the_embeddings_width():
    objective = one_pair_objective(Matryoshka(InfoNCE(), [2, 4]), InBatch())
    with pytest.raises(ValueError, match=r"the last of dims=\[2, 4\] must be .* 6"):
        evaluate(objective, drawn())
