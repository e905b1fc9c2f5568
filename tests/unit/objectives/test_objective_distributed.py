"""Several ranks give the loss and every gradient of one process on the joined batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gloo import run_ranks
from objective_cases import LOSSES, Batch, batch, dense_objective, one_pair_objective
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from multimodal.core.distributed import all_gather, all_reduce_sum, world_size
from multimodal.objectives import gathered_batch
from multimodal.objectives.candidates import AllRanks, Local, Queue, Ring
from multimodal.objectives.interfaces import compatible
from multimodal.objectives.losses.margin import Triplet
from multimodal.objectives.losses.matryoshka import Matryoshka
from multimodal.objectives.losses.sigmoid import SigLIP
from multimodal.objectives.losses.softmax import InfoNCE
from multimodal.objectives.matches import SampleKeys
from multimodal.objectives.negatives.reweighting import Debiased, Reweighted
from multimodal.objectives.negatives.selection import Hard, InBatch, Random
from multimodal.objectives.objective import make_objective

CHOICES = [(loss, InBatch()) for loss in LOSSES] + [
    (loss, strategy)
    for loss in (InfoNCE(), Triplet())
    for strategy in (Random(k=3), Hard(k=2), Reweighted(), Debiased())
    if compatible(loss, strategy) is None
]
WARMING = [
    (loss, strategy)
    for loss in (InfoNCE(), Triplet())
    for strategy in (
        Random(k=3, warmup_steps=8),
        Hard(k=2, warmup_steps=8),
        Debiased(warmup_steps=8),
    )
    if compatible(loss, strategy) is None
]
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


class Model(nn.Module):
    """Two linear towers under an objective, as the training module holds them."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.towers = nn.ModuleDict({name: nn.Linear(6, 6) for name in ("image", "text")}).double()
        self.objective = objective

    def embed(self, data: Batch) -> Batch:
        image, text = (
            F.normalize(self.towers[name](inputs), dim=1)
            for name, inputs in data.embeddings().items()
        )
        return Batch(image, text, data.sample_ids, data.positive_keys)

    def forward(self, data: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        embedded = self.embed(data)
        output = self.objective(
            embedded.embeddings(), data.sample_ids, data.positive_keys, 2, 1, "source"
        )
        return output.loss, output.metrics


def share(data: Batch, sizes: tuple[int, ...], rank: int) -> Batch:
    start = sum(sizes[:rank])
    return data[start : start + sizes[rank]]


def equals_one_process(rank: int, cases: list[tuple[tuple[int, ...], str]], queue: bool) -> None:
    candidates = Queue(size=8) if queue else AllRanks()
    for sizes, repeated in cases:
        data = batch(sum(sizes), sum(sizes), repeated=repeated)
        for loss, strategy in CHOICES:
            _one(rank, sizes, data, one_pair_objective(loss, strategy, candidates))
        for loss, strategy in WARMING:
            mixed = one_pair_objective(loss, strategy, candidates)
            _one(rank, sizes, data, mixed, one_pair_objective(loss, InBatch(), candidates))


def _one(
    rank: int,
    sizes: tuple[int, ...],
    data: Batch,
    objective: nn.Module,
    in_batch: nn.Module | None = None,
) -> None:
    alone = Model(objective)
    expected = dense_objective(objective, alone.embed(data))
    if in_batch is not None:  # step 2 of a warm-up over 8: a quarter is the strategy's
        in_batch.pairs["image_text"].logit_scale = objective.pairs["image_text"].logit_scale
        expected = 0.75 * dense_objective(in_batch, alone.embed(data)) + 0.25 * expected
    wanted = torch.autograd.grad(
        expected, alone.parameters(), allow_unused=True, materialize_grads=True
    )
    together = DistributedDataParallel(alone)
    loss, metrics = together(share(data, sizes, rank))
    loss.backward()
    case = f"{sizes} {objective.pairs['image_text'].loss} {objective.pairs['image_text'].negatives}"
    note = lambda text: f"{case}: {text}"  # noqa: E731
    mean = all_reduce_sum(loss) / world_size()
    torch.testing.assert_close(mean, expected.detach(), **TIGHT, msg=note)
    found = [parameter.grad for parameter in alone.parameters()]
    torch.testing.assert_close(found, list(wanted), **TIGHT, msg=note)
    shown = all_reduce_sum(metrics["loss/image_text"]) / world_size()
    torch.testing.assert_close(shown, expected.detach(), **TIGHT, msg=note)


def round_the_ranks_equals_one_process(rank: int, cases: list[tuple[tuple[int, ...], str]]) -> None:
    shapes = []

    def noting(tensor: Tensor, *others: Any) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return all_gather(tensor, *others)

    gathered_batch.all_gather = noting
    for sizes, repeated in cases:
        data = batch(sum(sizes), sum(sizes), repeated=repeated)
        for options in ({}, {"equal_keys": "ignored"}):
            objective = one_pair_objective(SigLIP(), InBatch(), Ring(), **options)
            shapes.clear()
            _one(rank, sizes, data, objective)
            assert all(len(shape) == 2 and shape[1] == 2 for shape in shapes), shapes  # keys alone


ROUND = {
    2: [((4, 4), "nothing"), ((5, 2), "nothing"), ((5, 2), "keys"), ((6, 0), "keys")],
    3: [((3, 3, 3), "nothing"), ((4, 0, 2), "nothing"), ((2, 5, 3), "keys")],
}


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.heavy), 3])
def test_candidates_that_go_round_the_ranks(tmp_path, ranks):
    run_ranks(round_the_ranks_equals_one_process, ranks, tmp_path, ROUND[ranks])


def too_many_positives_are_gathered(rank: int) -> None:
    data = batch(12, 12, repeated="nothing")
    data = Batch(data.image, data.text, data.sample_ids, torch.zeros_like(data.positive_keys))
    _one(rank, (7, 5), data, one_pair_objective(SigLIP(), InBatch(), Ring()))


def test_with_too_many_positives_to_list_they_are_gathered(tmp_path):
    run_ranks(too_many_positives_are_gathered, 2, tmp_path)


def test_what_does_not_go_round_is_refused():
    for loss, strategy in ((InfoNCE(), InBatch()), (SigLIP(), Random(k=3))):
        assert "take candidates=all_ranks" in str(compatible(loss, strategy, Ring()))
    assert compatible(SigLIP, InBatch, Ring) is None
    assert compatible(Matryoshka(SigLIP(), [2, 6]), InBatch(), Ring()) is None


@pytest.mark.parametrize(
    "queue",
    [
        pytest.param(False, id="all_ranks"),
        pytest.param(True, id="queue", marks=pytest.mark.slow),  # four ranks are quick
    ],
)
def test_two_ranks(tmp_path, queue):
    cases = [((4, 4), "nothing"), ((5, 2), "nothing"), ((5, 2), "keys"), ((6, 0), "keys")]
    run_ranks(equals_one_process, 2, tmp_path, cases, queue)


@pytest.mark.heavy
@pytest.mark.parametrize("queue", [False, True], ids=["all_ranks", "queue"])
def test_four_ranks(tmp_path, queue):
    cases = [((3, 3, 3, 3), "keys"), ((4, 0, 1, 2), "nothing"), ((3, 0, 5, 2), "keys")]
    run_ranks(equals_one_process, 4, tmp_path, cases, queue)


def queues_agree(rank: int) -> None:
    """Gathered rows enter every rank's queue in the same order, as in one process."""
    sizes = (3, 2)
    objective = one_pair_objective(LOSSES[0], InBatch(), Queue(size=8))
    single = one_pair_objective(LOSSES[0], InBatch(), Queue(size=8))
    for seed in range(3):
        data = batch(seed, 5)
        part = share(data, sizes, rank)
        objective(part.embeddings(), part.sample_ids, part.positive_keys, seed, 0, "s")
        objective.update_queues(applied=seed != 1)
        if seed != 1:
            identity = SampleKeys(data.sample_ids, data.positive_keys)
            for name, queue in single.pairs["image_text"].queues.items():
                queue.enqueue(getattr(data, name), identity)
    for name, value in objective.state_dict().items():
        assert torch.equal(value, single.state_dict()[name]), name


def local_candidates_stay_local(rank: int) -> None:
    """The loss is the mean over all anchors, each against its own rank's candidates."""
    sizes = (4, 3)
    data = batch(0, 7)
    objective = one_pair_objective(LOSSES[0], InBatch(), Local())
    part = share(data, sizes, rank)
    output = objective(part.embeddings(), part.sample_ids, part.positive_keys, 2, 1, "s")
    expected = sum(
        size / 7 * dense_objective(objective, share(data, sizes, r)) for r, size in enumerate(sizes)
    )
    torch.testing.assert_close(all_reduce_sum(output.loss) / 2, expected.detach(), **TIGHT)


def local_candidates_have_to_be_two(rank: int) -> None:
    """On the largest rank: an uneven last batch may leave a rank with one, or none."""
    for sizes, enough in (((1, 1), False), ((1, 0), False), ((2, 1), True), ((2, 0), True)):
        part = share(batch(0, sum(sizes)), sizes, rank)
        objective = one_pair_objective(LOSSES[0], InBatch(), Local())
        args = (part.embeddings(), part.sample_ids, part.positive_keys, 2, 1, "s")
        if enough:
            assert objective(*args).loss.isfinite()
        else:
            with pytest.raises(ValueError, match=r"data\.batch_size.*=all_ranks or queue"):
                objective(*args)


def metrics_are_global(rank: int) -> None:
    data = batch(0, 7)
    objective = one_pair_objective(LOSSES[0], Hard(k=2, skip=5))
    part = share(data, (7, 0), rank)
    metrics = objective(part.embeddings(), part.sample_ids, part.positive_keys, 2, 1, "s").metrics
    means = {name: all_reduce_sum(value) / 2 for name, value in metrics.items()}
    similarities = data.image @ data.text.T
    nearest = similarities.argmax(1) == torch.arange(7)
    assert means["accuracy/image_text"].item() == pytest.approx(nearest.double().mean().item())
    mean = similarities.diagonal().mean().item()
    assert means["positive_similarity/image_text"].item() == pytest.approx(mean)
    assert means["logit_scale/image_text"].item() == pytest.approx(1 / 0.07)
    assert means["without_negatives/image_text"].item() == 0


def locked_sides_stay(rank: int) -> None:
    """The locked side's tower gets nothing, on any rank; the other what one process gives it."""
    data, sizes = batch(1, 7), (3, 4)
    for loss, strategy in ((InfoNCE(), InBatch()), (Triplet(), Hard(k=2))):
        alone = Model(one_pair_objective(loss, strategy, stop_gradient="image"))
        expected = run_alone(alone, data)
        together = DistributedDataParallel(alone, find_unused_parameters=True)
        together(share(data, sizes, rank))[0].backward()
        assert all(p.grad is None or not p.grad.any() for p in alone.towers["image"].parameters())
        found = [parameter.grad for parameter in alone.towers["text"].parameters()]
        torch.testing.assert_close(found, expected, **TIGHT)
        assert found[0].any()


def run_alone(model: Model, data: Batch) -> list[Tensor]:
    """Gradients of the text tower by the whole matrix, the image's embeddings held."""
    embedded = model.embed(data)
    held = Batch(embedded.image.detach(), embedded.text, data.sample_ids, data.positive_keys)
    loss = dense_objective(model.objective, held)
    return list(torch.autograd.grad(loss, list(model.towers["text"].parameters())))


def several(rank: int) -> None:
    locked_sides_stay(rank)
    queues_agree(rank)
    local_candidates_stay_local(rank)
    local_candidates_have_to_be_two(rank)
    metrics_are_global(rank)


def test_queues_local_candidates_and_metrics(tmp_path):
    run_ranks(several, 2, tmp_path)


def _counted(rank: int) -> None:
    """Keys in one collective, and all modalities in one; prepared or not gives the same loss."""
    names = ("image", "text", "audio")
    generator = torch.Generator().manual_seed(rank)
    sides = {
        name: F.normalize(torch.randn(3 + rank, 6, generator=generator), dim=1).requires_grad_()
        for name in names
    }
    ids = torch.arange(3 + rank) + 10 * rank
    pairs = {f"image_{name}": {"anchor": "image", "other": name} for name in names[1:]}
    objective = make_objective(pairs, InfoNCE(), InBatch(), AllRanks())
    calls = []
    collective = torch.distributed.all_gather
    torch.distributed.all_gather = lambda *args: (calls.append(1), collective(*args))
    try:
        prepared = objective.prepare(names, "s", ids, ids)
        assert len(calls) == 2  # sizes, keys
        loss = objective(sides, ids, ids, 2, 1, "s", prepared=prepared).loss
        assert len(calls) == 3 + len(pairs)  # all modalities; sums over columns of each pair
    finally:
        torch.distributed.all_gather = collective
    plain = objective(sides, ids, ids, 2, 1, "s").loss
    assert torch.equal(loss, plain)
    loss.backward()
    assert all(side.grad is not None and side.grad.any() for side in sides.values())


def test_all_modalities_are_gathered_in_one_collective(tmp_path):
    run_ranks(_counted, 2, tmp_path)
