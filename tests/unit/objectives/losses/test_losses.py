"""Every loss against its formula, written as loops over single numbers."""

from __future__ import annotations

import pytest
import torch
from objective_cases import LOSSES, case
from torch import Tensor

from multimodal.objectives.losses.margin import Hinge, Triplet
from multimodal.objectives.losses.sigmoid import SigLIP
from multimodal.objectives.losses.softmax import DCL, InfoNCE, SoftTarget, SupCon

WEIGHTED = [loss for loss in LOSSES if "weights" in loss.accepts]


def by_loops(
    loss: object,
    similarities: Tensor,
    scale: Tensor,
    bias: Tensor,
    positives: Tensor,
    log_weights: Tensor,
) -> Tensor:
    """The loss of each anchor, one term at a time."""
    results = []
    for s, is_positive, log_w in zip(similarities, positives, log_weights, strict=True):
        P = [s[c] for c in range(len(s)) if is_positive[c]]
        N = [
            (s[c], log_w[c].exp()) for c in range(len(s)) if not is_positive[c] and log_w[c] > -1e9
        ]
        results.append(_one_anchor(loss, P, N, scale, bias) + 0 * s.sum())
    return torch.stack(results)


def _one_anchor(loss, P, N, scale, bias):
    weighted = sum(((w * (scale * n).exp()) for n, w in N), torch.zeros((), dtype=torch.float64))
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    zero = torch.zeros((), dtype=torch.float64)
    match loss:
        case InfoNCE():
            terms = []
            for p in P:
                denominator = (scale * p).exp() + weighted
                classes = [scale * p] + [scale * n + w.log() for n, w in N]
                spread = mean([denominator.log() - logit for logit in classes])
                own = denominator.log() - scale * p
                terms.append((1 - loss.label_smoothing) * own + loss.label_smoothing * spread)
            return mean(terms)
        case DCL():
            return mean([weighted.log() - scale * p for p in P]) if N else zero
        case SupCon() | SoftTarget():
            denominator = sum((scale * p).exp() for p in P) + weighted
            logits = [scale * p for p in P] + [scale * n + w.log() for n, w in N]
            if isinstance(loss, SoftTarget):
                trust = [(p.detach() / loss.target_temperature).exp() for p in P]
                targets = [t / sum(trust) for t in trust]
            else:
                targets = [1 / len(P)] * len(P)
            smoothed = [(1 - loss.label_smoothing) * t for t in targets] + [0.0] * len(N)
            smoothed = [t + loss.label_smoothing / len(logits) for t in smoothed]
            return sum(
                t * (denominator.log() - logit) for t, logit in zip(smoothed, logits, strict=True)
            )
        case SigLIP():
            near = [-(scale * p + bias).sigmoid().log() for p in P]
            far = [-w * (1 - (scale * n + bias).sigmoid()).log() for n, w in N]
            return sum(near + far)
        case Triplet():
            violations = [loss.margin - min(P) + n for n, _ in N]
            violations = [v for v in violations if v > 0]
            return mean(violations) if violations else zero
        case Hinge():
            violations = [(loss.margin - min(P) + n).relu() for n, _ in N] or [zero]
            return max(violations) if loss.hardest else sum(violations)
    raise AssertionError(loss)


def inputs(seed: int, num_positives: int, weighted: bool) -> tuple[Tensor, ...]:
    """Similarities, scale and bias with gradients; positives; drops or weights."""
    drawn = case(seed, num_positives=num_positives)
    log_weights = torch.zeros_like(drawn.similarities)
    if weighted:
        log_weights.normal_(generator=torch.Generator().manual_seed(seed))
    log_weights[~drawn.negatives] = -torch.inf
    log_weights[drawn.positives] = 0
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    return drawn.similarities.requires_grad_(), scale, bias, drawn.positives, log_weights


def assert_same(loss: object, args: tuple[Tensor, ...]) -> None:
    """Values per anchor, and the gradients of a weighted sum of them."""
    ours, theirs = loss(*args), by_loops(loss, *args)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.linspace(0.5, 1.5, len(ours), dtype=torch.float64)
    gradients = [
        torch.autograd.grad(upstream @ values, args[:3], allow_unused=True, materialize_grads=True)
        for values in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("num_positives", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_equals_loops(loss, num_positives, seed):
    assert_same(loss, inputs(seed, num_positives, weighted=False))


@pytest.mark.parametrize("loss", WEIGHTED, ids=str)
@pytest.mark.parametrize("num_positives", [1, 3])
def test_weights_equal_loops(loss, num_positives):
    assert_same(loss, inputs(5, num_positives, weighted=True))


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_without_negatives(loss):
    similarities, scale, bias, positives, log_weights = inputs(0, 1, weighted=False)
    log_weights = log_weights.masked_fill(~positives, -torch.inf)
    values = loss(similarities, scale, bias, positives, log_weights)
    if isinstance(loss, SigLIP):
        logits = scale * similarities[positives] + bias
        torch.testing.assert_close(values, -logits.sigmoid().log())
    else:
        assert torch.equal(values, torch.zeros_like(values))
    (gradient,) = torch.autograd.grad(values.sum(), similarities)  # the graph is kept
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("alone", [False, True])
def test_nan_comes_through(loss, alone):
    similarities, scale, bias, positives, log_weights = inputs(0, 2, weighted=False)
    if alone:
        log_weights = log_weights.masked_fill(~positives, -torch.inf)
    similarities = similarities.detach().masked_fill(positives, torch.nan)
    assert loss(similarities, scale, bias, positives, log_weights).isnan().all()


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_equal_similarities_give_finite_gradients(loss):
    similarities, scale, bias, positives, log_weights = inputs(0, 2, weighted=False)
    similarities = torch.ones_like(similarities).requires_grad_()
    values = loss(similarities, scale, bias, positives, log_weights)
    (gradient,) = torch.autograd.grad(values.sum(), similarities)
    assert values.isfinite().all()
    assert gradient.isfinite().all()


def test_large_logits_stay_exact_in_float32():
    similarities = torch.tensor([[1.0, -1.0, 0.99]])
    positives = torch.tensor([[True, False, False]])
    args = (torch.tensor(100.0), torch.tensor(0.0), positives, torch.zeros(1, 3))
    expected = torch.tensor([1.0, -1.0, 0.99], dtype=torch.float64).mul(100).logsumexp(0) - 100
    torch.testing.assert_close(
        InfoNCE()(similarities, *args)[0].double(), expected, rtol=1e-5, atol=0
    )


def test_soft_target_at_the_logits_temperature_has_the_gradient_of_mil_nce():
    similarities, scale, bias, positives, log_weights = inputs(1, 3, weighted=True)
    soft = SoftTarget(target_temperature=1 / scale.item())
    ours = soft(similarities, scale, bias, positives, log_weights).sum()
    logits = scale * similarities + log_weights
    mil_nce = logits.logsumexp(1) - logits.masked_fill(~positives, -torch.inf).logsumexp(1)
    torch.testing.assert_close(
        torch.autograd.grad(ours, similarities), torch.autograd.grad(mil_nce.sum(), similarities)
    )


def test_soft_target_at_a_high_temperature_is_sup_con():
    args = inputs(1, 3, weighted=False)
    torch.testing.assert_close(SoftTarget(target_temperature=1e9)(*args), SupCon()(*args))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: InfoNCE(label_smoothing=1.0), "label_smoothing must be in"),
        (lambda: InfoNCE(directions="both"), "directions must be"),
        (lambda: SoftTarget(target_temperature=0.0), "target_temperature must be above 0"),
        (lambda: Triplet(margin=-0.1), "margin must be at least 0"),
        (lambda: Hinge(margin=float("nan")), "margin must be at least 0"),
    ],
)
def test_refuses_values_out_of_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()
