"""Every strategy against its definition, written as loops over single numbers."""

from __future__ import annotations

import math

import pytest
import torch
from objective_cases import LOSSES, STRATEGIES, Case, case, context

from multimodal.core.hashing import stable_hash
from multimodal.core.tensor_hashing import pair_hash
from multimodal.objectives.interfaces import compatible
from multimodal.objectives.losses.margin import Hinge, Triplet
from multimodal.objectives.losses.sigmoid import SigLIP
from multimodal.objectives.losses.softmax import InfoNCE
from multimodal.objectives.negatives.reweighting import Debiased, Reweighted
from multimodal.objectives.negatives.sampling import top
from multimodal.objectives.negatives.selection import (
    DistanceWeighted,
    Filtered,
    Hard,
    InBatch,
    Random,
    SemiHard,
)

WITH = context()
KEY = stable_hash(WITH.seed, WITH.step, WITH.pair, WITH.direction)


def splitmix64(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def draw(anchor_id: int, candidate_id: int) -> int:
    return splitmix64(splitmix64((anchor_id ^ KEY) % 2**64) ^ splitmix64(candidate_id)) >> 1


def by_loops(strategy, drawn: Case) -> torch.Tensor:
    """Log weights, -inf at whatever is not a negative."""
    out = torch.full_like(drawn.similarities, -torch.inf)
    for row in range(len(out)):
        s = drawn.similarities[row].tolist()
        P = [s[c] for c in range(len(s)) if drawn.positives[row, c]]
        N = {c: s[c] for c in range(len(s)) if drawn.negatives[row, c]}
        for c, log_w in _one_anchor(strategy, row, P, N, drawn.candidate_ids.tolist()).items():
            out[row, c] = log_w
    return out


def _one_anchor(strategy, row, P, N, ids) -> dict[int, float]:
    first = lambda score, k: sorted(N, key=lambda c: (-score(c), ids[c]))[:k]  # noqa: E731
    scale = WITH.scale.item()
    match strategy:
        case InBatch():
            return dict.fromkeys(N, 0.0)
        case Random():
            return dict.fromkeys(first(lambda c: draw(row, ids[c]), strategy.k), 0.0)
        case Hard():
            k = strategy.k if isinstance(strategy.k, int) else math.ceil(strategy.k * len(N))
            return dict.fromkeys(first(lambda c: N[c], k + strategy.skip)[strategy.skip :], 0.0)
        case SemiHard():
            kept = [c for c in N if min(P) - strategy.margin < N[c] < min(P)]
            if not kept:
                kept = [c for c in first(lambda c: N[c], len(N)) if N[c] < min(P)][:1]
            return dict.fromkeys(kept or first(lambda c: -N[c], 1), 0.0)
        case Reweighted():
            weights = {c: math.exp(strategy.beta * scale * N[c]) for c in N}
            return {c: math.log(w * len(N) / sum(weights.values())) for c, w in weights.items()}
        case Debiased():
            weights = {c: math.exp(strategy.beta * scale * N[c]) for c in N}
            mean = sum(w * math.exp(scale * N[c]) for c, w in weights.items()) / (
                sum(weights.values()) or 1
            )
            positive = sum(math.exp(scale * p) for p in P) / len(P)
            g = (mean - strategy.tau_plus * positive) / (1 - strategy.tau_plus)
            g = max(g, math.exp(-scale))
            return {
                c: math.log(w * len(N) / sum(weights.values())) + math.log(g / mean)
                for c, w in weights.items()
            }
        case DistanceWeighted():
            n = WITH.embed_dim

            def score(c):
                chances = [
                    d ** -(n - 2) * (1 - d * d / 4) ** (-(n - 3) / 2)
                    for d in (math.sqrt(2 - 2 * N[c]), strategy.cutoff)
                ]
                u = (draw(row, ids[c]) + 0.5) / 2**63
                return math.log(min(chances)) - math.log(-math.log(u))

            return dict.fromkeys(first(score, strategy.k), 0.0)
        case Filtered():
            trusted = {c: v for c, v in N.items() if v < strategy.threshold}
            return _one_anchor(strategy.then, row, P, trusted, ids)
    raise AssertionError(strategy)


def apply(strategy, drawn: Case) -> torch.Tensor:
    log_weights = strategy(
        drawn.similarities,
        drawn.positives,
        drawn.negatives,
        drawn.anchor_ids,
        drawn.candidate_ids,
        WITH,
    )
    return log_weights.masked_fill(~drawn.negatives, -torch.inf)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("num_positives", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_equals_loops(strategy, num_positives, seed):
    drawn = case(seed, num_positives=num_positives)
    torch.testing.assert_close(apply(strategy, drawn), by_loops(strategy, drawn))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_ties_go_to_the_smaller_candidate_id(strategy):
    drawn = case(0)
    drawn.similarities = (drawn.similarities * 2).round() * 0.45
    torch.testing.assert_close(apply(strategy, drawn), by_loops(strategy, drawn))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_without_negatives_nothing_breaks(strategy):
    drawn = case(0)
    drawn.negatives[:2] = False
    drawn.similarities.requires_grad_()
    log_weights = apply(strategy, drawn)
    assert (log_weights[:2] == -torch.inf).all()
    kept = log_weights[log_weights.isfinite()]
    if kept.requires_grad:
        (gradient,) = torch.autograd.grad(kept.sum(), drawn.similarities)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_rows_do_not_depend_on_each_other(strategy):
    drawn = case(3, anchors=6)
    whole = apply(strategy, drawn)
    for row in range(6):
        one = Case(
            drawn.similarities[row : row + 1],
            drawn.positives[row : row + 1],
            drawn.negatives[row : row + 1],
            drawn.anchor_ids[row : row + 1],
            drawn.candidate_ids,
        )
        torch.testing.assert_close(apply(strategy, one)[0], whole[row])


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_columns_travel_with_their_ids(strategy):
    drawn = case(3)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    moved = Case(
        drawn.similarities[:, order],
        drawn.positives[:, order],
        drawn.negatives[:, order],
        drawn.anchor_ids,
        drawn.candidate_ids[order],
    )
    torch.testing.assert_close(apply(strategy, moved), apply(strategy, drawn)[:, order])


def test_debiased_in_float32_at_a_high_scale():
    """exp(100) is beyond float32; the floor exp(-100) too."""
    drawn = case(1)
    drawn.similarities[0] = -1.0
    drawn.similarities[0, drawn.positives[0]] = 1.0
    results = []
    for dtype in (torch.float32, torch.float64):
        similarities = drawn.similarities.to(dtype).requires_grad_()
        log_weights = Debiased(tau_plus=0.2)(
            similarities,
            drawn.positives,
            drawn.negatives,
            drawn.anchor_ids,
            drawn.candidate_ids,
            context(100.0, dtype),
        )
        kept = log_weights[drawn.negatives]
        results.append((kept.double(), *torch.autograd.grad(kept.sum(), similarities)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(results[0][1].double(), results[1][1], rtol=1e-3, atol=1e-2)


def test_random_draws_differ_by_step_direction_and_anchor():
    ids = torch.arange(50)
    everything = torch.ones(50, 50, dtype=torch.bool)
    kept = [
        Random(k=5)(everything.double(), ~everything, everything, ids, ids, context(**change)) == 0
        for change in ({}, {"step": 3}, {"seed": 2}, {"pair": "a"}, {"direction": "text->image"})
    ]
    assert all((rows.sum(1) == 5).all() for rows in kept)
    assert all((kept[0] != other).any(1).float().mean() > 0.9 for other in kept[1:])
    assert (kept[0][0] != kept[0][1]).any()


def test_hashes_are_uniform():
    ids = torch.arange(256)
    draws = pair_hash(ids, ids + 1000, KEY).double() / 2**63
    assert 0 <= draws.min() < 1e-3
    assert 1 - 1e-3 < draws.max() <= 1
    counts = torch.histc(draws, 16, 0, 1)
    assert ((counts - 4096).abs() < 5 * 64).all()
    rows = draws - draws.mean()
    assert abs((rows[:-1] * rows[1:]).mean() / rows.var()) < 0.02


def test_distance_weighted_chances():
    """Kept with k=1 as often as its chance says."""
    s = torch.tensor([0.9, 0.3, -0.2, -0.8], dtype=torch.float64)
    anchors = torch.arange(20000)
    rows = s.expand(20000, 4)
    everything = torch.ones(20000, 4, dtype=torch.bool)
    strategy = DistanceWeighted(k=1, cutoff=0.5)
    kept = strategy(rows, ~everything, everything, anchors, torch.arange(4), context()) == 0
    distances = (2 - 2 * s).sqrt()
    chances = (distances**2 * (1 - distances**2 / 4).sqrt()).reciprocal()
    chances = chances.clamp(max=1 / (0.25 * math.sqrt(1 - 0.0625)))
    expected = chances / chances.sum()
    torch.testing.assert_close(kept.double().mean(0), expected, atol=0.015, rtol=0)


def test_top_takes_all_where_there_are_no_more():
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    among = torch.tensor([[True, False, True], [True, True, True]])
    ids = torch.tensor([7, 5, 6])
    assert top(scores, among, 5, ids).equal(among)
    assert top(scores, among, 0, ids).equal(torch.zeros_like(among))
    per_row = top(scores, among, torch.tensor([1, 2]), ids)
    assert per_row.tolist() == [[True, False, False], [False, True, True]]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_what_goes_together(loss, strategy):
    reason = compatible(loss, strategy)
    weighs = isinstance(strategy, Reweighted | Debiased)
    refused = (isinstance(loss, Triplet | Hinge) and weighs) or (
        isinstance(loss, SigLIP) and isinstance(strategy, Debiased)
    )
    assert (reason is not None) == refused
    assert compatible(type(loss), strategy) == reason
    if refused:
        assert f"{type(strategy).__name__} with loss {type(loss).__name__}" in reason


def test_a_filter_is_as_compatible_as_what_follows_it():
    assert compatible(Triplet(), Filtered(0.9, Hard())) is None
    assert "a margin loss has no weights" in compatible(Triplet(), Filtered(0.9, Reweighted()))
    assert compatible(InfoNCE(), Filtered(0.9, Debiased())) is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Random(k=0), "k must be at least 1"),
        (lambda: Hard(k=0), "k must be at least 1"),
        (lambda: Hard(k=1.5), "a share between 0 and 1"),
        (lambda: Hard(skip=-1), "skip must be at least 0"),
        (lambda: SemiHard(margin=0), "margin must be above 0"),
        (lambda: Reweighted(beta=-1.0), "beta must be at least 0"),
        (lambda: Debiased(tau_plus=1.0), "tau_plus must be in"),
        (lambda: DistanceWeighted(cutoff=2.0), "cutoff must be in"),
        (lambda: Filtered(threshold=2.0, then=InBatch()), "threshold must be a cosine"),
    ],
)
def test_refuses_values_out_of_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()
