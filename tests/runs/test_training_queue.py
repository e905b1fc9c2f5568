"""Queues and the moving average of the towers, as training keeps them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from experiment_helpers import losses, run_training, train_here, weights, write_sensor_shards
from gloo import run_ranks
from objective_cases import batch, one_pair_objective
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from multimodal.objectives.candidates import Queue
from multimodal.objectives.losses.softmax import InfoNCE
from multimodal.objectives.negatives.selection import InBatch
from multimodal.training.modules.contrastive import ContrastiveModule
from multimodal.training.optim import was_applied

BATCH, SIZE = 32, 72
QUEUE = ("candidates=queue", f"candidates.size={SIZE}")
MOMENTUM = (*QUEUE, "candidates.momentum=0.75")
RANDOM = ("negatives=random", "negatives.k=3")
KEEP = ("callbacks.checkpoint.every_n_train_steps=1", "callbacks.checkpoint.keep_last=9")
SHORT = ("trainer.max_steps=6", "~evaluation", f"data.batch_size={BATCH}", *KEEP)
QUEUES = "objective.pairs.image_sensor.queues."


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def here(shards, monkeypatch, tmp_path):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    torch.set_num_threads(1)
    return tmp_path


def queues(state):
    return {name: value for name, value in state.items() if name.startswith(QUEUES)}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.quick
def test_the_queue_moves_by_a_batch_per_step_and_the_average_by_its_share(here):
    train_here(here, *SHORT, *MOMENTUM)
    states = [weights(here, step) for step in range(1, 7)]
    for number, state in enumerate(states, start=1):
        assert state[f"{QUEUES}image.position"] == number * BATCH % SIZE
        assert state[f"{QUEUES}sensor.filled"].sum() == min(SIZE, number * BATCH)
    towers = [name for name in states[0] if name.startswith("model.") and "weight" in name]
    assert towers
    for before, after in pairwise(states):
        for name in towers:
            average = f"momentum_model.module.{name.removeprefix('model.')}"
            expected = before[average].lerp(after[name], 0.25)
            torch.testing.assert_close(after[average], expected, rtol=0, atol=0)


@pytest.mark.quick
@pytest.mark.parametrize(
    "choice",
    [
        pytest.param(QUEUE, marks=pytest.mark.heavy),
        MOMENTUM,
        pytest.param(RANDOM, marks=pytest.mark.slow),
    ],
    ids=["queue", "momentum", "random"],
)
def test_resuming_continues_bit_exactly(here, choice):
    train_here(here / "whole", *SHORT, *choice)
    middle = here / "whole" / "checkpoints" / "step=00000003.ckpt"
    train_here(here / "resumed", *SHORT, *choice, f"resume='{middle}'")
    assert losses(here / "resumed") == {
        step: loss for step, loss in losses(here / "whole").items() if step > 3
    }
    assert_equal(weights(here / "whole", 6), weights(here / "resumed", 6))


@pytest.mark.heavy
def test_the_past_takes_part_in_the_loss(here):
    train_here(here / "queue", *SHORT, *QUEUE)
    train_here(here / "batch", *SHORT)
    with_past, without = losses(here / "queue"), losses(here / "batch")
    assert float(with_past[1]) == pytest.approx(float(without[1]))  # nothing is queued yet
    assert float(with_past[2]) > float(without[2])  # more negatives


@pytest.mark.quick
def test_a_step_that_was_not_applied_leaves_both_as_they_were(here, monkeypatch):
    dropped = []

    def drop(module, optimizer):
        if module.trainer.global_step == 2:
            dropped.append(2)
            optimizer.zero_grad()

    monkeypatch.setattr(ContrastiveModule, "on_before_optimizer_step", drop)
    train_here(here, *SHORT, *MOMENTUM)
    assert dropped == [2]
    before, after, later = (weights(here, step) for step in (2, 3, 4))
    assert_equal(before, after)
    assert later[f"{QUEUES}image.position"] == 3 * BATCH % SIZE
    ids = later[f"{QUEUES}image.sample_ids"]
    assert not torch.equal(ids, after[f"{QUEUES}image.sample_ids"])


@pytest.mark.heavy
def test_batches_of_an_accumulation_enter_together(here):
    train_here(here, *SHORT, *QUEUE, "trainer.accumulate_grad_batches=2")
    # an epoch has five batches, and its last one is not kept waiting
    for number, batches in enumerate([2, 4, 5, 7, 9, 10], start=1):
        position = weights(here, number)[f"{QUEUES}image.position"]
        assert position == batches * BATCH % SIZE


@pytest.mark.quick
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_gradient_scaler_skips_was_not_applied(fused):
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(was_applied(optimizer)))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, applied in ((1.0, True), (torch.inf, False), (1.0, True)):
        seen.clear()
        before = weight.detach().clone()
        optimizer.zero_grad()
        scaler.scale((factor * weight).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert any(seen) == applied
        assert (not torch.equal(weight, before)) == applied


def queues_are_not_broadcast(rank: int) -> None:
    module = ContrastiveModule(
        nn.Linear(1, 1),
        one_pair_objective(InfoNCE(), InBatch(), Queue(size=8)),
        optimizer=torch.optim.SGD,
        scheduler=None,
        weight_decay=0.0,
        seed=0,
    )
    data = batch(0, 4)
    module.forward = lambda: (
        module.objective(data.embeddings(), data.sample_ids, data.positive_keys, 0, 0, "s").loss
    )
    queue = module.objective.pairs["image_text"].queues["image"]
    queue.embeddings[0] = rank
    module.register_buffer("sent", torch.tensor(float(rank)))
    DistributedDataParallel(module, find_unused_parameters=True)()
    assert module.sent == 0  # as DDP does with every other buffer
    assert (queue.embeddings[0] == rank).all()


def test_queues_are_not_broadcast(tmp_path):
    run_ranks(queues_are_not_broadcast, 2, tmp_path)


def test_two_ranks_queue_as_one_process_on_the_joined_batch(shards, tmp_path):
    common = ["+experiment=sensor", *SHORT, *MOMENTUM, "trainer.precision=32-true"]
    one = run_training([*common, f"hydra.run.dir={tmp_path}/one"], shards)
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=16"]
    two = run_training([*common, *ddp, f"hydra.run.dir={tmp_path}/two"], shards)
    assert one.returncode == 0, one.stderr[-3000:]
    assert two.returncode == 0, two.stderr[-3000:]
    single, double = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert sorted(single) == sorted(double) == list(range(1, 7))
    for step in single:
        assert float(double[step]) == pytest.approx(float(single[step]), abs=1e-5)
    ids = f"{QUEUES}image.sample_ids"
    assert torch.equal(weights(tmp_path / "one", 6)[ids], weights(tmp_path / "two", 6)[ids])
