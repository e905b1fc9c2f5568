"""Negatives that samples list, against plain loops over every anchor and candidate."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from gloo import run_ranks
from objective_cases import Batch, batch, compatible_choices, one_pair_objective
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from multimodal.core.batch import Batch as DataBatch
from multimodal.core.batch import ListedInputs
from multimodal.core.distributed import all_reduce_sum, world_size
from multimodal.models.joint.base import JointEmbeddings
from multimodal.objectives.candidates import AllRanks, Local, Queue
from multimodal.objectives.gathered_batch import ListedEmbeddings
from multimodal.objectives.interfaces import Context
from multimodal.objectives.losses.margin import Triplet
from multimodal.objectives.losses.matryoshka import Matryoshka
from multimodal.objectives.losses.sigmoid import SigLIP
from multimodal.objectives.losses.softmax import DCL, InfoNCE
from multimodal.objectives.losses.target import CosineTarget
from multimodal.objectives.matches import SampleKeys
from multimodal.objectives.negatives.selection import Hard, InBatch
from multimodal.training.modules.contrastive import ContrastiveModule

TIGHT = {"rtol": 1e-10, "atol": 1e-12}


@dataclass
class Listed:
    """Rows with owners and keys, which the loops read as lists."""

    rows: Tensor
    owners: Tensor
    ids: Tensor
    keys: Tensor

    def __getitem__(self, rows: Tensor) -> Listed:
        return Listed(self.rows[rows], self.owners[rows], self.ids[rows], self.keys[rows])

    def embeddings(self) -> ListedEmbeddings:
        return ListedEmbeddings(self.rows, self.owners, SampleKeys(self.ids, self.keys))


def listed_of(data: Batch, counts: list[int], seed: int = 7) -> Listed:
    """``counts[i]`` rows of sample i; the first repeats the next sample's id and key."""
    generator = torch.Generator().manual_seed(seed)
    owners = torch.repeat_interleave(data.sample_ids, torch.tensor(counts))
    rows = torch.randn(len(owners), 6, generator=generator, dtype=torch.float64)
    ids = 1000 + torch.arange(len(owners))
    keys = ids.clone()
    if len(owners):
        ids[0], keys[0] = data.sample_ids[1], data.positive_keys[1]
    return Listed(F.normalize(rows, dim=1), owners, ids, keys)


def by_loops(objective: nn.Module, data: Batch, listed: dict[str, Listed]) -> Tensor:
    """The pair's loss, every candidate's part decided one by one."""
    pair = objective.pairs["image_text"]
    scale = pair.logit_scale.exp()
    bias = torch.zeros(()) if pair.logit_bias is None else pair.logit_bias
    sides, total = data.embeddings(), torch.zeros((), dtype=torch.float64)
    once = pair.loss.directions == "once"
    for anchor, other in (("image", "text"), ("text", "image")):
        in_batch = not (once and anchor == "text")
        if not in_batch and "image" not in listed:
            break
        candidates = []  # (embedding, id, key, owner of a listed one)
        if in_batch:
            none = [None] * len(data.sample_ids)
            candidates += zip(sides[other], data.sample_ids, data.positive_keys, none, strict=True)
        if other in listed:
            theirs = listed[other]
            candidates += zip(theirs.rows, theirs.ids, theirs.keys, theirs.owners, strict=True)
        if pair.queues and in_batch:
            queue = pair.queues[other]
            candidates += [
                (
                    queue.embeddings[row].double(),
                    queue.sample_ids[row],
                    queue.positive_keys[row],
                    None,
                )
                for row in queue.filled.nonzero().flatten().tolist()
            ]
        ids = torch.stack([entry[1] for entry in candidates])
        positives = torch.zeros(len(data.sample_ids), len(candidates), dtype=torch.bool)
        negatives = torch.zeros_like(positives)
        for row, (own, key) in enumerate(zip(data.sample_ids, data.positive_keys, strict=True)):
            for column, (_, other_id, other_key, owner) in enumerate(candidates):
                related = bool(own == other_id) or bool(key == other_key)
                positives[row, column] = related and owner is None
                mine = owner is None or pair.candidates.listed == "batch" or bool(owner == own)
                negatives[row, column] = not related and mine
        similarities = sides[anchor] @ torch.stack([entry[0] for entry in candidates]).T
        given = Context(1, 2, "image_text", f"{anchor}->{other}", scale, 6)
        log_weights = pair.negatives(
            similarities, positives, negatives, data.sample_ids, ids, given
        ).masked_fill(~negatives, -torch.inf)
        log_weights = log_weights.masked_fill(positives, 0)
        total = total + pair.loss(similarities, scale, bias, positives, log_weights).mean()
        if once and "image" not in listed:
            break
    return total / 2 if pair.loss.directions == "mean" else total


def compare(objective: nn.Module, data: Batch, listed: dict[str, Listed]) -> None:
    wanted = [data.image, data.text, *(each.rows for each in listed.values())]
    for tensor in wanted:
        tensor.requires_grad_()
    wanted += list(objective.parameters())
    ours = objective(
        data.embeddings(), data.sample_ids, data.positive_keys, step=2, seed=1, source="s",
        listed={name: each.embeddings() for name, each in listed.items()},
    ).loss  # fmt: skip
    dense = by_loops(objective, data, listed)
    torch.testing.assert_close(ours, dense, **TIGHT)
    found, expected = (
        torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        for loss in (ours, dense)
    )
    torch.testing.assert_close(found, expected, **TIGHT)


@pytest.mark.parametrize("scope", ["batch", pytest.param("anchor", marks=pytest.mark.heavy)])
@pytest.mark.parametrize(("loss", "strategy"), compatible_choices(), ids=str)
def test_every_combination_equals_loops(loss, strategy, scope):
    for chunk_size, kind, repeated, sides in (
        (2, AllRanks(listed=scope), "nothing", ("text",)),
        (None, Queue(size=8, listed=scope), "keys", ("image", "text")),
        (3, Local(listed=scope), "keys", ("image",)),
    ):
        data = batch(3, 5, repeated=repeated)
        objective = one_pair_objective(loss, strategy, kind, chunk_size)
        counts = {"text": [2, 0, 1, 3, 1], "image": [1, 1, 0, 0, 2]}
        compare(objective, data, {side: listed_of(data, counts[side]) for side in sides})


def test_they_change_the_loss_and_none_changes_nothing():
    data, objective = batch(0, 4), one_pair_objective(InfoNCE(), InBatch())
    args = (data.embeddings(), data.sample_ids, data.positive_keys, 2, 1, "s")
    plain = objective(*args).loss
    some = objective(*args, listed={"text": listed_of(data, [1, 1, 1, 1]).embeddings()}).loss
    none = objective(*args, listed={"text": listed_of(data, [0, 0, 0, 0]).embeddings()}).loss
    assert some > plain
    torch.testing.assert_close(none, plain, **TIGHT)


def test_prefixes_have_them_too():
    data = batch(0, 4)
    listed = listed_of(data, [1, 0, 2, 1])
    whole = one_pair_objective(Matryoshka(InfoNCE(), [3, 6]), InBatch())
    ours = whole(
        data.embeddings(), data.sample_ids, data.positive_keys, 2, 1, "s",
        listed={"text": listed.embeddings()},
    ).loss  # fmt: skip
    parts = []
    for dim in (3, 6):
        image, text, rows = (
            F.normalize(tensor[:, :dim], dim=1) for tensor in (data.image, data.text, listed.rows)
        )
        short = Batch(image, text, data.sample_ids, data.positive_keys)
        theirs = Listed(rows, listed.owners, listed.ids, listed.keys)
        parts.append(by_loops(one_pair_objective(InfoNCE(), InBatch()), short, {"text": theirs}))
    torch.testing.assert_close(ours, sum(parts) / 2, **TIGHT)


def test_targets_read_none():
    data, objective = batch(0, 4), one_pair_objective(CosineTarget(), InBatch())
    args = (data.embeddings(), data.sample_ids, data.positive_keys, 2, 1, "s")
    listed = {"text": listed_of(data, [1, 1, 1, 1]).embeddings()}
    assert torch.equal(objective(*args).loss, objective(*args, listed=listed).loss)


def test_another_scope_is_refused():
    with pytest.raises(ValueError, match=r"listed must be 'batch'.*given 'all'"):
        AllRanks(listed="all")


class Towers(nn.Module):
    """Two linear towers, as `EmbeddingModel` is called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.towers = nn.ModuleDict({name: nn.Linear(6, 6) for name in ("image", "text")}).double()
        self.joint = JointEmbeddings({}, nn.ModuleDict())

    def embed(self, modality: str, inputs: Tensor, mask: Tensor | None) -> Tensor:
        return F.normalize(self.towers[modality](inputs), dim=1)

    def tower(self, modality: str) -> nn.Module:
        return self.towers[modality]


class Step(nn.Module):
    """The training module's step, called as DDP calls a module."""

    def __init__(self, objective: nn.Module, micro_batch_size: int | None) -> None:
        super().__init__()
        self.module = ContrastiveModule(
            Towers(), objective, torch.optim.SGD, None, 0.0, 1, micro_batch_size
        )

    def forward(self, given: DataBatch) -> Tensor:
        return self.module.training_step(given, 0)


def data_batch(data: Batch, listed: Listed) -> DataBatch:
    some = len(listed.rows) > 0
    rows = ListedInputs(listed.rows if some else None, None, listed.owners, listed.ids, listed.keys)
    return DataBatch(
        data.embeddings(), {}, data.sample_ids, data.positive_keys,
        torch.zeros_like(data.sample_ids), "s", step=2, listed={"text": rows},
    )  # fmt: skip


CASES = [
    (loss, strategy, scope)
    for loss, strategy in (
        (InfoNCE(), InBatch()),
        (DCL(), InBatch()),
        (SigLIP(), InBatch()),
        (Triplet(), InBatch()),
        (InfoNCE(), Hard(k=2)),
    )
    for scope in ("batch", "anchor")
]


def equals_one_process(rank: int, sizes: tuple[int, ...], counts: list[int]) -> None:
    data = batch(1, sum(sizes), repeated="keys")
    listed = listed_of(data, counts)
    start = sum(sizes[:rank])
    rows = slice(start, start + sizes[rank])
    mine = torch.isin(listed.owners, data.sample_ids[rows])
    for loss, strategy, scope in CASES:
        for micro_batch_size in (None, 2):
            objective = one_pair_objective(loss, strategy, AllRanks(listed=scope))
            step = Step(objective, micro_batch_size)
            towers = step.module.model
            image = towers.embed("image", data.image, None)
            text = towers.embed("text", data.text, None)
            embedded = Batch(image, text, data.sample_ids, data.positive_keys)
            vectors = towers.embed("text", listed.rows, None)
            theirs = Listed(vectors, listed.owners, listed.ids, listed.keys)
            expected = by_loops(objective, embedded, {"text": theirs})
            parameters = [p for p in step.parameters() if p.requires_grad]
            wanted = torch.autograd.grad(
                expected, parameters, allow_unused=True, materialize_grads=True
            )
            together = DistributedDataParallel(step) if world_size() > 1 else step
            value = together(data_batch(data[rows], listed[mine]))
            value.backward()
            mean = all_reduce_sum(value) / world_size()
            torch.testing.assert_close(mean, expected.detach(), **TIGHT)
            found = [p.grad for p in parameters]
            torch.testing.assert_close(found, list(wanted), **TIGHT)


def test_one_rank_with_and_without_gradient_caching():
    equals_one_process(0, (7,), [1, 0, 2, 0, 1, 1, 3])


def test_two_ranks_with_and_without_gradient_caching(tmp_path):
    # the second rank's samples list nothing, and the third case's rank has no samples
    run_ranks(equals_one_process, 2, tmp_path, (4, 3), [1, 0, 2, 1, 0, 0, 0])


@pytest.mark.slow
def test_four_ranks_with_and_without_gradient_caching(tmp_path):
    run_ranks(equals_one_process, 4, tmp_path, (3, 0, 2, 2), [1, 0, 2, 1, 0, 0, 3])
