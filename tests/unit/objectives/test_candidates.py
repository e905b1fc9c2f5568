"""The queue's content, when it changes, and how it comes back."""

from __future__ import annotations

import pytest
import torch
from objective_cases import batch, compatible_choices, gradients, one_pair_objective
from torch import nn

from multimodal.objectives.candidates import AllRanks, EmbeddingQueue, Queue
from multimodal.objectives.losses.softmax import InfoNCE
from multimodal.objectives.matches import SampleKeys
from multimodal.objectives.negatives.selection import Hard, InBatch
from multimodal.objectives.objective import make_objective
from multimodal.training.modules.momentum import MomentumCopy


def rows(*numbers: int) -> tuple[torch.Tensor, SampleKeys]:
    ids = torch.tensor(numbers, dtype=torch.int64)
    return ids[:, None].float().expand(-1, 2), SampleKeys(ids, 10 * ids)


@pytest.mark.parametrize("steps", [[(1, 2)], [(1, 2), (3, 4, 5)], [(1, 2, 3, 4, 5, 6)], [()]])
def test_keeps_the_last_rows(steps):
    queue = EmbeddingQueue(4, 2)
    for numbers in steps:
        queue.enqueue(*rows(*numbers))
    embeddings, identity = queue.content()
    kept = [number for numbers in steps for number in numbers][-4:]
    filled = identity.filled
    assert sorted(identity.sample_ids[filled].tolist()) == kept
    assert torch.equal(embeddings[filled][:, 0].long(), identity.sample_ids[filled])
    assert torch.equal(identity.positive_keys[filled], 10 * identity.sample_ids[filled])


def test_the_oldest_is_overwritten_first():
    queue = EmbeddingQueue(3, 2)
    for number in range(1, 6):
        queue.enqueue(*rows(number))
    assert queue.sample_ids.tolist() == [4, 5, 3]


def step(objective, data, number=0, **given):
    return objective(
        data.embeddings(), data.sample_ids, data.positive_keys, number, 0, "s", **given
    )


def test_changes_only_after_an_applied_step():
    objective = one_pair_objective(InfoNCE(), InBatch(), Queue(size=8))
    before = {name: value.clone() for name, value in objective.state_dict().items()}

    def changed() -> bool:
        return any(not value.equal(before[name]) for name, value in objective.state_dict().items())

    step(objective, batch(0, 3))
    assert not changed()  # not in the forward
    objective.update_queues(applied=False)
    assert not changed()  # nor if the step was skipped
    objective.update_queues(applied=True)
    assert not changed()  # and a skipped batch is forgotten
    objective.eval()
    step(objective, batch(0, 3))
    objective.update_queues(applied=True)
    assert not changed()  # nor in evaluation
    objective.train()
    data = batch(1, 3)
    step(objective, data)
    objective.update_queues(applied=True)
    queue = objective.pairs["image_text"].queues["text"]
    assert torch.equal(queue.embeddings[5:], data.text)
    assert torch.equal(queue.sample_ids[5:], data.sample_ids)
    assert queue.filled.all()


def test_accumulated_batches_enter_in_order():
    objective = one_pair_objective(InfoNCE(), InBatch(), Queue(size=8))
    first, second = batch(1, 2), batch(2, 2)
    step(objective, first)
    step(objective, second)
    objective.update_queues()
    queue = objective.pairs["image_text"].queues["image"]
    expected = torch.cat([first.sample_ids, second.sample_ids])
    assert torch.equal(queue.sample_ids[torch.arange(5, 9) % 8], expected)


@pytest.mark.parametrize(("loss", "strategy"), compatible_choices()[::5], ids=str)
def test_the_backward_sees_the_queue_of_its_forward(loss, strategy):
    """Updating between forward and backward changes no gradient."""
    data = batch(0, 5)
    data.image.requires_grad_()
    data.text.requires_grad_()
    objective = one_pair_objective(loss, strategy, Queue(size=8))
    expected = gradients(step(objective, data).loss, objective, data)
    later = step(objective, data).loss
    objective.update_queues()
    assert all(a.equal(b) for a, b in zip(gradients(later, objective, data), expected, strict=True))


def test_a_queued_sample_is_never_its_own_negative():
    """The batch is in the queue as well: the loss is that of the batch with doubled negatives."""
    data = batch(0, 4)
    objective = one_pair_objective(InfoNCE(), InBatch(), Queue(size=4))
    step(objective, data)
    objective.update_queues()
    scale = objective.pairs["image_text"].logit_scale.exp()
    logits = scale * data.image @ data.text.T
    eye = torch.eye(4, dtype=torch.bool)
    expected = 0
    for matrix in (logits, logits.T):
        others = 2 * matrix.exp().masked_fill(eye, 0).sum(1)
        own = matrix.diagonal().exp()
        expected = expected - (own / (own + others)).log().mean() / 2
    torch.testing.assert_close(step(objective, data).loss, expected)


def test_resumes_bit_exactly():
    states, losses = [], []
    objective = one_pair_objective(InfoNCE(), Hard(k=2), Queue(size=8))
    for number in range(6):
        if number == 3:
            saved = {name: value.clone() for name, value in objective.state_dict().items()}
        losses.append(step(objective, batch(number, 3), number).loss)
        objective.update_queues()
        states.append({name: value.clone() for name, value in objective.state_dict().items()})
    resumed = make_objective(
        {"image_text": {"anchor": "image", "other": "text"}},
        InfoNCE(),
        Hard(k=2),
        Queue(size=8),
        embed_dim=6,
    ).double()
    resumed.load_state_dict(saved)
    for number in range(3, 6):
        assert step(resumed, batch(number, 3), number).loss.equal(losses[number])
        resumed.update_queues()
        for name, value in resumed.state_dict().items():
            assert value.equal(states[number][name]), name


def test_momentum_embeddings_fill_the_queue():
    objective = one_pair_objective(InfoNCE(), InBatch(), Queue(size=8, momentum=0.9))
    assert objective.momentum == 0.9
    data, average = batch(0, 3), batch(7, 3)
    with pytest.raises(ValueError, match="no momentum_embeddings"):
        step(objective, data)
    plain = one_pair_objective(InfoNCE(), InBatch(), Queue(size=8))
    output = step(objective, data, momentum_embeddings=average.embeddings())
    assert output.loss == step(plain, data).loss  # the batch itself is compared as it is
    objective.update_queues()
    queue = objective.pairs["image_text"].queues["image"]
    assert torch.equal(queue.embeddings[5:], average.image)
    assert torch.equal(queue.sample_ids[5:], data.sample_ids)


def test_pairs_share_one_momentum():
    pairs = {
        name: {"anchor": "image", "other": name, "candidates": Queue(size=4, momentum=momentum)}
        for name, momentum in (("text", 0.9), ("audio", 0.99))
    }
    with pytest.raises(ValueError, match="different momenta"):
        make_objective(pairs, InfoNCE(), InBatch(), AllRanks(), embed_dim=4)


def test_momentum_copy():
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    average = MomentumCopy(tower, momentum=0.75)
    start = tower[0].weight.detach().clone()
    with torch.no_grad():
        tower[0].weight.add_(1.0)
    tower(torch.randn(8, 3))  # moves the running statistics
    average.update(tower)
    torch.testing.assert_close(average.module[0].weight, start + 0.25)
    assert torch.equal(average.module[1].running_mean, tower[1].running_mean)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    average.train()
    assert not average.module[2].training
    average.update(tower)
    torch.testing.assert_close(average.module[0].weight, start + 0.25 + 0.75 * 0.25)


@pytest.mark.parametrize(
    ("changes", "message"), [({"size": 0}, "size must be"), ({"momentum": 1.0}, "momentum must be")]
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        Queue(**changes)
