"""Affinity losses against loops over a batch, and a teacher's embeddings beside it."""

from __future__ import annotations

import math

import pytest
import torch
from gloo import run_ranks
from objective_cases import batch
from omegaconf import OmegaConf
from torch import Tensor

from multimodal.evaluation.trained_pairs import trained_pairs
from multimodal.inference.checkpoint.weights import pair_temperatures
from multimodal.objectives.candidates import AllRanks, Local
from multimodal.objectives.interfaces import compatible
from multimodal.objectives.losses.affinity import KLAffinity, SquaredAffinity
from multimodal.objectives.losses.matryoshka import Matryoshka
from multimodal.objectives.losses.softmax import InfoNCE
from multimodal.objectives.negatives.selection import InBatch
from multimodal.objectives.objective import ContrastiveObjective, make_objective

LOSSES = [KLAffinity(), KLAffinity(teacher_scale=3.0), SquaredAffinity()]
PAIR = {"anchor": "image", "other": "text", "logit_scale": {"init": 5.0}}


def objective(loss, candidates=None, chunk_size=None, **pair) -> ContrastiveObjective:
    pairs = {"affinity": {**PAIR, **pair}}
    made = make_objective(pairs, loss, InBatch(), candidates or AllRanks(), chunk_size=chunk_size)
    return made.double()


def embeddings(size: int = 7) -> tuple[dict[str, Tensor], Tensor]:
    """A student's of width 6, its teacher's of width 4 in float32, and sample ids."""
    student, teacher = batch(0, size), batch(1, size, dim=4)
    given = {name: rows.requires_grad_() for name, rows in student.embeddings().items()}
    taught = {f"teacher_{name}": rows.float() for name, rows in teacher.embeddings().items()}
    return {**given, **taught}, student.sample_ids


def evaluate(made: ContrastiveObjective, given: dict[str, Tensor], ids: Tensor):
    output = made(given, ids, ids, 0, 0, "s")
    output.loss.backward()
    return output


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(value) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def by_loops(loss, given: dict[str, Tensor], ends=("image", "text"), scale: float = 5.0) -> float:
    """The definition, entry by entry."""
    teachers = [end if end.startswith("teacher_") else f"teacher_{end}" for end in ends]
    total, count = 0.0, len(given[ends[0]])
    for a, c in ((0, 1), (1, 0)):
        for i in range(count):
            s = [float(given[ends[a]][i].detach().double() @ given[ends[c]][j].detach().double())
                 for j in range(count)]  # fmt: skip
            t = [float(given[teachers[a]][i] @ given[teachers[c]][j]) for j in range(count)]
            if isinstance(loss, SquaredAffinity):
                total += sum((x - y) ** 2 for x, y in zip(s, t, strict=True)) / count
                continue
            sharp = scale if loss.teacher_scale is None else loss.teacher_scale
            found, target = softmax([scale * x for x in s]), softmax([sharp * y for y in t])
            total += sum(q * math.log(q / p) for p, q in zip(found, target, strict=True))
    return total / 2 / count


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_it_is_the_mean_over_rows_of_both_directions(loss, chunk_size):
    given, ids = embeddings()
    output = evaluate(objective(loss, chunk_size=chunk_size), given, ids)
    assert float(output.loss.detach()) == pytest.approx(by_loops(loss, given), rel=1e-6)
    assert float(output.metrics["without_negatives/affinity"]) == 0


def test_equal_similarities_cost_nothing_and_another_width_is_no_matter():
    given, ids = embeddings()
    turn = torch.linalg.qr(torch.randn(9, 6, dtype=torch.float64))[0]  # of orthonormal columns
    same = {f"teacher_{n}": (given[n] @ turn.T).detach() for n in ("image", "text")}
    for loss in (KLAffinity(), SquaredAffinity()):
        output = evaluate(objective(loss), {**given, **same}, ids)
        assert float(output.loss.detach()) == pytest.approx(0, abs=1e-12)


def by_matrices(loss, given: dict[str, Tensor], scale: Tensor) -> Tensor:
    """The whole matrices in plain autograd."""
    student = given["image"] @ given["text"].T
    teacher = given["teacher_image"].double() @ given["teacher_text"].double().T
    if isinstance(loss, SquaredAffinity):
        return (student - teacher).square().mean()
    sharp = scale.detach() if loss.teacher_scale is None else loss.teacher_scale
    terms = [
        ((sharp * t).softmax(1) * ((sharp * t).log_softmax(1) - (scale * s).log_softmax(1))).sum(1)
        for s, t in ((student, teacher), (student.T, teacher.T))
    ]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_gradients_are_those_of_the_whole_matrices(loss, chunk_size):
    given, ids = embeddings()
    made = objective(loss, chunk_size=chunk_size)
    scale = made.pairs["affinity"].logit_scale
    evaluate(made, given, ids)
    wanted = [given["image"], given["text"], scale]
    dense = by_matrices(loss, given, scale.exp())
    expected = torch.autograd.grad(dense, wanted, allow_unused=True, materialize_grads=True)
    for tensor, gradient in zip(wanted, expected, strict=True):
        torch.testing.assert_close(tensor.grad, gradient, rtol=1e-6, atol=1e-8)


def test_a_student_finds_its_place_among_the_teacher_s():
    given, ids = embeddings()
    taught = torch.nn.functional.normalize(torch.randn(7, 6, dtype=torch.float64), dim=1)
    sides = {"image": given["image"], "teacher_image": taught}
    ends = ("image", "teacher_image")
    made = objective(KLAffinity(), other="teacher_image")
    assert made.modalities([*sides, "text"], "s") == ["image", "teacher_image"]
    output = evaluate(made, sides, ids)
    assert float(output.loss.detach()) == pytest.approx(by_loops(KLAffinity(), sides, ends))
    assert given["image"].grad is not None


def test_prefixes_are_compared_with_the_whole_teacher():
    given, ids = embeddings()
    output = evaluate(objective(Matryoshka(SquaredAffinity(), [2, 6])), given, ids)
    unit = torch.nn.functional.normalize
    cut = {**given, **{name: unit(given[name][:, :2], dim=1) for name in ("image", "text")}}
    expected = (by_loops(SquaredAffinity(), cut) + by_loops(SquaredAffinity(), given)) / 2
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-6)


def test_without_a_teacher_s_embeddings_the_pair_is_not_active():
    made = objective(KLAffinity())
    assert made.active_pairs(["image", "text", "teacher_image"], "s") == set()
    assert made.active_pairs(["image", "text", "teacher_image", "teacher_text"], "s")
    with pytest.raises(TypeError, match="compares two matrices"):
        KLAffinity()(*[torch.zeros(2, 2)] * 5)


def test_tokens_are_refused():
    assert compatible(KLAffinity, InBatch(), per_token=False) is None
    assert "take similarity=cosine" in str(compatible(KLAffinity, InBatch(), per_token=True))


def on_a_rank(rank: int, folder: str) -> None:
    given, ids = embeddings()
    rows = slice(0, 5) if rank == 0 else slice(5, 7)
    for name, loss, candidates in CASES:
        part = {n: side[rows].detach().requires_grad_(n in ("image", "text"))
                for n, side in given.items()}  # fmt: skip
        output = evaluate(objective(loss, candidates), part, ids[rows])
        grads = [part[n].grad / 2 for n in ("image", "text")]
        torch.save([output.loss.detach(), *grads], f"{folder}/{name}{rank}.pt")


CASES = [("kl", KLAffinity(), None), ("mse", SquaredAffinity(), None), ("l", KLAffinity(), Local())]


def test_two_ranks_of_different_sizes_are_one_process(tmp_path):
    run_ranks(on_a_rank, 2, tmp_path, str(tmp_path))
    for name, loss, candidates in CASES:
        given, ids = embeddings()
        ranks = [torch.load(tmp_path / f"{name}{rank}.pt") for rank in range(2)]
        mean = (ranks[0][0] + ranks[1][0]) / 2
        if candidates is None:
            output = evaluate(objective(loss), given, ids)
            torch.testing.assert_close(mean, output.loss.detach())
            for side, end in enumerate(("image", "text"), start=1):
                joined = torch.cat([rank[side] for rank in ranks])
                torch.testing.assert_close(joined, given[end].grad)
        else:
            parts = [{n: rows[at] for n, rows in given.items()} for at in
                     (slice(0, 5), slice(5, 7))]  # fmt: skip
            expected = sum(len(p["image"]) * by_loops(loss, p) for p in parts) / 7
            assert float(mean) == pytest.approx(expected, rel=1e-6)


def test_it_says_nothing_of_the_temperature_and_a_teacher_is_no_modality():
    ends = {"anchor": "image", "other": "text"}
    pull = {**ends, "loss": {"_target_": "multimodal.objectives.KLAffinity"}}
    pairs = {"learned": ends, "pull": pull, "feature": {**ends, "other": "teacher_image"}}
    cfg = OmegaConf.create({"pairs": pairs})
    scales = {"learned": math.log(20.0), "pull": 0.0}
    weights = {f"objective.pairs.{n}.logit_scale": torch.tensor(v) for n, v in scales.items()}
    assert pair_temperatures(cfg, weights) == {frozenset(ends.values()): pytest.approx(0.05)}
    assert set(trained_pairs(cfg)) == {frozenset(ends.values())}


def test_a_student_s_images_stand_in_contrast_to_the_teacher_s_texts():
    given, ids = embeddings()
    texts = batch(2, 7).text
    sides = {"image": given["image"], "teacher_text": texts}
    output = evaluate(objective(InfoNCE(), other="teacher_text"), sides, ids)
    logits = 5.0 * given["image"].detach() @ texts.T
    rows = torch.arange(7)
    expected = [torch.nn.functional.cross_entropy(x, rows) for x in (logits, logits.T)]
    torch.testing.assert_close(output.loss.detach(), sum(expected) / 2)
