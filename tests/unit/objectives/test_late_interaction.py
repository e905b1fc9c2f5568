"""Late interaction: against loops over tokens, on several ranks, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from gloo import run_ranks
from largest import Largest
from objective_cases import (
    Batch,
    batch,
    compatible_choices,
    dense_objective,
    gradients,
    one_pair_objective,
)
from torch import Tensor
from torch.nn import functional as F

from multimodal.core.distributed import all_reduce_sum
from multimodal.core.similarity import max_similarity as kernel
from multimodal.core.similarity.max_similarity import max_similarity, paired_max_similarity
from multimodal.core.similarity.similarities import MaxSim
from multimodal.core.similarity.tokens import padded
from multimodal.objectives.candidates import AllRanks, Local, Queue
from multimodal.objectives.gathered_batch import ListedEmbeddings
from multimodal.objectives.losses.margin import Triplet
from multimodal.objectives.losses.matryoshka import Matryoshka
from multimodal.objectives.losses.sigmoid import SigLIP
from multimodal.objectives.losses.softmax import InfoNCE
from multimodal.objectives.losses.target import CosineTarget, SquaredTarget
from multimodal.objectives.matches import SampleKeys
from multimodal.objectives.negatives.reweighting import Debiased
from multimodal.objectives.negatives.selection import DistanceWeighted, Filtered, Hard, InBatch
from multimodal.objectives.objective import make_objective

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
KINDS = [MaxSim(), MaxSim(query="text"), MaxSim(query="image", reduction="sum")]


def tokens(seed: int, lengths: list[int], longest: int, dim: int = 6) -> Tensor:
    """Unit-norm tokens in float64, and zeros behind them."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(lengths), longest, dim, generator=generator, dtype=torch.float64)
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return F.normalize(rows, dim=2) * real[..., None]


def token_batch(seed: int, size: int, repeated: str = "nothing") -> Batch:
    lengths = torch.randint(1, 5, (2, size), generator=torch.Generator().manual_seed(seed))
    given = batch(seed, size, repeated=repeated)
    image, text = tokens(seed, lengths[0].tolist(), 4), tokens(seed + 1, lengths[1].tolist(), 5)
    return Batch(image, text, given.sample_ids, given.positive_keys)


def looped(queries: Tensor, documents: Tensor) -> Tensor:
    """Token by token, as the papers write it."""
    rows = []
    for query in queries:
        for document in documents:
            found = [
                torch.stack([token @ other for other in document if other.any()]).max()
                for token in query
                if token.any() and document.any()
            ]
            rows.append(sum(found, torch.zeros((), dtype=queries.dtype)))
    return torch.stack(rows).view(len(queries), len(documents))


def dense(kind: MaxSim) -> Callable[[str, Tensor, Tensor], Tensor]:
    """All products of tokens at once, in plain autograd."""

    def similar(anchor: str, rows: Tensor, columns: Tensor) -> Tensor:
        asks = kind.query in (None, anchor)
        queries, documents = (rows, columns) if asks else (columns, rows)
        products = torch.einsum("atd,cud->atcu", queries, documents)
        real = documents.any(dim=2)
        best = products.masked_fill(~real, -torch.inf).max(dim=3).values
        best = (best * queries.any(dim=2)[..., None]).sum(dim=1)
        if kind.reduction == "mean":
            best = best / queries.any(dim=2).sum(dim=1)[:, None]
        return best if asks else best.T

    return similar


@pytest.mark.parametrize("tile", [1, 13, 50, 2**20])
def test_the_kernel_equals_loops(tile, monkeypatch):
    monkeypatch.setattr(kernel, "CPU_TILE", tile)
    queries = tokens(0, [4, 1, 3, 2, 4], 4).requires_grad_()
    documents = tokens(1, [3, 3, 1, 2, 0, 3, 2], 3).requires_grad_()
    weights = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours, expected = max_similarity(queries, documents), looped(queries, documents)
    torch.testing.assert_close(ours, expected, **TIGHT)
    found, wanted = (
        torch.autograd.grad((rows * weights).sum(), (queries, documents))
        for rows in (ours, expected)
    )
    torch.testing.assert_close(found, wanted, **TIGHT)
    paired = paired_max_similarity(queries, documents[:5])
    torch.testing.assert_close(paired, expected[:, :5].diagonal(), **TIGHT)


def run(objective, data, **more):
    return objective(
        data.embeddings(), data.sample_ids, data.positive_keys, step=2, seed=1, source="s", **more
    )


def assert_equals_dense(objective, data: Batch, kind: MaxSim) -> None:
    data.image.requires_grad_()
    data.text.requires_grad_()
    ours = run(objective, data).loss
    whole = dense_objective(objective, data, similar=dense(kind))
    torch.testing.assert_close(ours, whole, **TIGHT)
    torch.testing.assert_close(
        gradients(ours, objective, data), gradients(whole, objective, data), **TIGHT
    )


@pytest.mark.parametrize(
    "kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])], ids=str
)
def test_every_loss_and_strategy_equals_the_whole_matrix(kind):
    for number, (loss, strategy) in enumerate(compatible_choices()):
        if not kind.bounded and getattr(strategy, "needs_cosines", False):
            continue
        candidates = (AllRanks(), Local())[number % 2]
        objective = one_pair_objective(loss, strategy, candidates, (None, 2)[number % 2], kind)
        repeated = ("nothing", "keys", "most keys")[number % 3]
        assert_equals_dense(objective, token_batch(number, 6, repeated), kind)


@pytest.mark.parametrize("loss", [CosineTarget(), SquaredTarget()], ids=str)
def test_targets_are_compared_with_their_own_document(loss):
    objective = one_pair_objective(loss, InBatch(), similarity=MaxSim(query="text"))
    assert_equals_dense(objective, token_batch(3, 6), MaxSim(query="text"))


def test_prefixes_of_tokens():
    data, kind = token_batch(4, 6), MaxSim()
    objective = one_pair_objective(Matryoshka(InfoNCE(), dims=[2, 6]), InBatch(), similarity=kind)
    one = one_pair_objective(InfoNCE(), InBatch(), similarity=kind)
    cut = replace(data, **{n: F.normalize(x[..., :2], dim=2) for n, x in data.embeddings().items()})
    expected = (run(one, data).loss + run(one, cut).loss) / 2
    torch.testing.assert_close(run(objective, data).loss, expected, **TIGHT)


def test_padding_changes_nothing():
    data = token_batch(5, 6)
    objective = one_pair_objective(InfoNCE(), Hard(k=2), similarity=MaxSim())
    more = replace(data, image=padded(data.image, 9), text=padded(data.text, 7))
    torch.testing.assert_close(run(objective, more).loss, run(objective, data).loss, **TIGHT)


def test_one_token_is_the_cosine():
    data = batch(6, 7)
    single = replace(data, image=data.image[:, None], text=data.text[:, None])
    for loss in (InfoNCE(), SigLIP(), Triplet()):
        cosine = run(one_pair_objective(loss, InBatch()), data)
        late = run(one_pair_objective(loss, InBatch(), similarity=MaxSim()), single)
        torch.testing.assert_close(late.loss, cosine.loss, **TIGHT)
        torch.testing.assert_close(late.metrics, cosine.metrics, **TIGHT)


@pytest.mark.parametrize("loss", [InfoNCE(), SigLIP()], ids=str)
def test_listed_negatives_of_another_length(loss):
    """As further columns of the one direction, whose texts are longer than the batch's."""
    data, kind = token_batch(7, 5), MaxSim(query="text")
    extra = tokens(8, [7, 2, 6], 7).requires_grad_()
    ids = torch.tensor([1000, 1001, 1002])
    listed = ListedEmbeddings(extra, data.sample_ids[:3], SampleKeys(ids, ids))
    objective = one_pair_objective(loss, InBatch(), similarity=kind)
    ours = run(objective, data, listed={"text": listed}).loss
    similar = dense(kind)
    columns = torch.cat([padded(data.text, 7), extra])
    wide = similar("image", data.image, columns)
    positives = torch.eye(5, 8, dtype=torch.bool)
    scale = objective.pairs["image_text"].scale()
    bias = objective.pairs["image_text"].bias(scale)
    nothing = torch.zeros(5, 8, dtype=torch.float64)
    whole = loss(wide, scale, bias, positives, nothing).mean()
    if loss.directions == "mean":
        back = similar("text", data.text, data.image)
        other = loss(back, scale, bias, positives[:, :5], nothing[:, :5]).mean()
        whole = (whole + other) / 2
    torch.testing.assert_close(ours, whole, **TIGHT)
    found, wanted = (torch.autograd.grad(x, extra, retain_graph=True)[0] for x in (ours, whole))
    torch.testing.assert_close(found, wanted, **TIGHT)


def equals_one_process(rank: int) -> None:
    """Uneven numbers of samples on the ranks, and of tokens of the longest."""
    for kind in KINDS:
        for sizes in ((4, 3), (6, 1), (5, 0)):
            data = token_batch(9, sum(sizes), "keys")
            data.text[sizes[0] :, 2:] = 0  # the second rank's texts are shorter
            for loss, strategy in ((InfoNCE(), InBatch()), (SigLIP(), Hard(k=2))):
                objective = one_pair_objective(loss, strategy, similarity=kind)
                leaves = [x.requires_grad_() for x in (data.image, data.text)]
                whole = dense_objective(objective, data, similar=dense(kind))
                wanted = torch.autograd.grad(whole, leaves)
                own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
                part = data[own]
                if rank == 1:
                    part = replace(part, text=part.text[:, :2])
                loss_here = run(objective, part).loss
                found = torch.autograd.grad(loss_here, leaves)
                torch.testing.assert_close(all_reduce_sum(loss_here) / 2, whole.detach(), **TIGHT)
                for ours, all_rows in zip(found, wanted, strict=True):
                    torch.testing.assert_close(ours[own] / 2, all_rows[own], **TIGHT)


def test_two_ranks_with_other_lengths(tmp_path):
    run_ranks(equals_one_process, 2, tmp_path)


def largest_of(size: int, length: int, monkeypatch) -> int:
    data = batch(0, size)
    sides = [tokens(seed, [length] * size, length, dim=4).float() for seed in (0, 1)]
    data = Batch(*(side.requires_grad_() for side in sides), data.sample_ids, data.positive_keys)
    objective = one_pair_objective(InfoNCE(), InBatch(), similarity=MaxSim()).float()
    with Largest() as seen:
        run(objective, data).loss.backward()
    return seen.bytes


def test_no_tensor_grows_with_the_square_of_the_batch(monkeypatch):
    """All products of tokens would be 64 x 64 x 16 x 16 numbers, 4 MiB: sixteen times the tile."""
    monkeypatch.setattr(kernel, "CPU_TILE", 2**14)
    monkeypatch.setattr("multimodal.objectives.kernels.blockwise.BLOCK_ENTRIES", 2**14)
    small = largest_of(64, 16, monkeypatch)
    assert small <= 4 * 2**14 * 2  # a tile of float32, or of the block's places
    assert largest_of(128, 16, monkeypatch) <= small
    assert largest_of(64, 32, monkeypatch) <= small


@pytest.mark.parametrize(
    ("loss", "strategy", "candidates", "said"),
    [
        (InfoNCE(), InBatch(), Queue(size=8), "a queue keeps one embedding a sample"),
        (InfoNCE(), Debiased(), None, "Debiased reads similarities from -1 to 1"),
        (InfoNCE(), DistanceWeighted(), None, "DistanceWeighted reads"),
        (InfoNCE(), Filtered(0.9, InBatch()), None, "Filtered reads"),
        (CosineTarget(), InBatch(), None, r"CosineTarget .* similarity\.reduction=mean"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_does_not_go_with_it_is_refused(loss, strategy, candidates, said):
    with pytest.raises(ValueError, match=rf"pairs\.image_text: .*{said}"):
        one_pair_objective(loss, strategy, candidates, similarity=MaxSim(reduction="sum"))


def test_embeddings_have_to_be_of_tokens():
    objective = one_pair_objective(InfoNCE(), InBatch(), similarity=MaxSim())
    with pytest.raises(ValueError, match=r"embeddings \[B, T, D\] of tokens, got \[4, 6\]"):
        run(objective, batch(0, 4))
    with pytest.raises(ValueError, match=r"compares embeddings \[B, D\], got \[4, 4, 6\]"):
        run(one_pair_objective(InfoNCE(), InBatch()), token_batch(0, 4))
    with pytest.raises(ValueError, match=r"similarity\.reduction must be 'mean' or 'sum'"):
        MaxSim(reduction="max")  # type: ignore[arg-type]


def test_pairs_without_the_query_take_their_anchors():
    pairs = {f"p_{n}": {"anchor": "image", "other": n} for n in ("text", "audio")}
    sides = {n: tokens(i, [2, 3, 1, 2], 3) for i, n in enumerate(("image", "text", "audio"))}
    ids = torch.arange(4)
    given = make_objective(pairs, InfoNCE(), InBatch(), AllRanks(), similarity=MaxSim(query="text"))
    filip = make_objective(pairs, InfoNCE(), InBatch(), AllRanks(), similarity=MaxSim())
    ours, other = (x(sides, ids, ids, 0, 0, "s").metrics for x in (given, filip))
    assert ours["loss/p_audio"] == other["loss/p_audio"]
    assert ours["loss/p_text"] != other["loss/p_text"]
