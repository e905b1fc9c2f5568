"""Tasks with a target: their losses by loops, samples without it, modalities' own heads, scores."""

import math

import pytest
import torch
from marks import some
from sklearn.metrics import average_precision_score, cohen_kappa_score, f1_score
from task_helpers import WIDTH, fused, parts

from multimodal.models.tasks.captioning import Captioning
from multimodal.models.tasks.labels import Classification, MultiLabel
from multimodal.models.tasks.matching import Matching
from multimodal.models.tasks.numbers import Ordinal, Regression
from multimodal.models.tasks.scores import (
    classification_scores,
    multi_label_scores,
    ordinal_scores,
    regression_scores,
)

NAMES = ["low", "middle", "high"]
TARGETS = {
    "classification": torch.tensor([0, 2, 1, 2, 0]),
    "multi_label": torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0]]),
    "regression": torch.tensor([[0.5, -2.0], [3.0, 0.1], [-0.3, 0.0], [1.0, 1.0], [-4.0, 0.2]]),
    "ordinal": torch.tensor([0, 2, 1, 2, 0]),
}


def make(kind, **options):
    torch.manual_seed(0)
    made = {
        "classification": lambda: Classification(parts(), "target", NAMES, **options),
        "multi_label": lambda: MultiLabel(parts(), "target", NAMES, **options),
        "regression": lambda: Regression(parts(), "target", outputs=2, **options),
        "ordinal": lambda: Ordinal(parts(), "target", NAMES, **options),
    }[kind]()
    return made.double()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def one_loss(task, kind, outputs, target):
    """One sample's loss, by plain arithmetic."""
    if kind == "classification":
        total = sum(math.exp(x) for x in outputs)
        return -math.log(math.exp(outputs[int(target)]) / total)
    if kind == "multi_label":
        chances = [sigmoid(x) for x in outputs]
        return -sum(
            math.log(p if t else 1 - p) for p, t in zip(chances, target.tolist(), strict=True)
        ) / len(chances)
    if kind == "regression":
        errors = [abs(x - t) for x, t in zip(outputs, target.tolist(), strict=True)]
        return sum(e * e / 2 if e < 1 else e - 0.5 for e in errors) / len(errors)
    levels = task.thresholds().tolist()
    return -sum(
        math.log(sigmoid(outputs[0] - t) if int(target) > k else 1 - sigmoid(outputs[0] - t))
        for k, t in enumerate(levels)
    )


@pytest.mark.parametrize("kind", TARGETS)
def test_losses_are_sums_over_the_samples_that_have_the_target(kind):
    task = make(kind, unimodal_weight=0.6)
    there = {
        "target": torch.tensor([True, True, False, True, True]),
        "text": torch.tensor([True, False, True, True, True]),
    }
    batch = fused({"target": TARGETS[kind]}, there)
    terms = task.loss(batch)
    assert tuple(terms) == task.terms == ("fused", "image", "text")
    rows = {"fused": [0, 1, 3, 4], "image": [0, 1, 3, 4], "text": [0, 3, 4]}
    heads = {"fused": task.head, **task.heads}
    for name, term in terms.items():
        features = batch.fused.features if name == "fused" else batch.encoded[name].features
        outputs = heads[name](features).tolist()
        expected = sum(one_loss(task, kind, outputs[i], TARGETS[kind][i]) for i in rows[name])
        assert term.total.item() == pytest.approx(expected, rel=1e-9)
        assert term.count.item() == len(rows[name])
        assert term.weight == (1.0 if name == "fused" else 0.3)  # the mean of two
    assert task.loss(fused({})) == {}
    assert set(task.loss(fused({"target": TARGETS[kind]}, absent=("text",)))) == {"fused", "image"}


@pytest.mark.parametrize("detach", [False, True])
def test_encoders_learn_from_their_own_heads_unless_detached(detach):
    task = make("classification", unimodal_weight=1.0, unimodal_detach=detach)
    batch = fused({"target": TARGETS["classification"]})
    task.loss(batch)["image"].total.backward()
    reached = batch.encoded["image"].features.grad
    assert (reached is None) == detach
    assert task.heads["image"].weight.grad.abs().sum() > 0


def test_without_weight_there_are_no_own_heads():
    task = make("classification")
    assert task.terms == ("fused",)
    assert len(task.heads) == 0
    assert set(task.loss(fused({"target": TARGETS["classification"]}))) == {"fused"}


def test_own_scores_are_over_the_samples_that_have_the_modality():
    task = make("classification", unimodal_weight=1.0).eval()
    present = torch.tensor([True, False, True, False, True])
    batch = fused({"target": TARGETS["classification"]}, {"text": present})
    own = task.own_scores(task.observe(batch))
    assert {name: scores.samples for name, scores in own.items()} == {"image": 5, "text": 3}
    said = task.heads["text"](batch.encoded["text"].features).argmax(dim=1)[present]
    right = (said == TARGETS["classification"][present]).double().mean().item()
    assert own["text"].values["accuracy"] == pytest.approx(right)
    gone = task.observe(fused({"target": TARGETS["classification"]}, absent=("text",)))
    assert set(task.own_scores(gone)) == {"image"}
    assert task.observe(fused({})) == {}


def test_classification_says_class_accuracy_and_chance():
    task = make("classification")
    logits = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 3, 0], [0, 0, 3], [3, 0, 0]])
    scores = task.score({"logits": logits, "targets": TARGETS["classification"]})
    assert scores.values["accuracy"] == pytest.approx(4 / 5)
    assert scores.values["mean_per_class"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert scores.chance["accuracy"] == pytest.approx(2 / 5)  # the commonest class
    assert scores.samples == 5
    assert task.describe(logits[1]) == "middle (91 %)"
    assert task.describe_target(TARGETS["classification"][1]) == "high"


def test_label_smoothing_is_that_of_the_definition():
    task = make("classification", label_smoothing=0.3)
    logits = torch.tensor([[0.2, -1.0, 0.5]], dtype=torch.float64)
    logs = logits.log_softmax(dim=1)[0]
    expected = -(0.7 * logs[2] + 0.1 * logs.sum())
    assert task.losses(logits, torch.tensor([2])).item() == pytest.approx(expected.item())


def test_multi_label_scores_equal_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(40, 4, generator=generator)
    labels = (torch.rand(40, 4, generator=generator) < 0.3).float()
    labels[:, 2] = 0  # does not occur, so that it has no precision
    found = multi_label_scores(scores, labels).values
    there = [0, 1, 3]
    wanted = [average_precision_score(labels[:, c].numpy(), scores[:, c].numpy()) for c in there]
    assert found["mean_average_precision"] == pytest.approx(sum(wanted) / 3)
    f1 = f1_score(labels.numpy(), (scores > 0).numpy(), average="micro")
    assert found["f1"] == pytest.approx(f1)
    task = make("multi_label")
    assert task.describe(torch.tensor([1.0, -1.0, 2.0])) == "low, high"
    assert task.describe_target(torch.zeros(3)) == "none"


def test_regression_scores_equal_their_definitions():
    predicted = torch.tensor([[0.0], [2.0], [1.0], [4.0]])
    targets = torch.tensor([[1.0], [2.0], [0.0], [3.0]])
    scores = regression_scores(predicted, targets)
    assert scores.values["mae"] == pytest.approx(0.75)
    assert scores.values["rmse"] == pytest.approx(math.sqrt(0.75))
    both = torch.cat([predicted, targets], dim=1).T
    assert scores.values["correlation"] == pytest.approx(torch.corrcoef(both)[0, 1].item())
    assert scores.chance["mae"] == pytest.approx(1.0)  # the mean, 1.5, is always said


def test_one_number_may_come_without_a_dimension():
    torch.manual_seed(0)
    task = Regression(parts(), "target", outputs=1, beta=0.5).double()
    flat = torch.tensor([0.5, -2.0, 0.3, 1.0, 4.0])
    batch = fused({"target": flat})
    assert torch.equal(
        task.loss(batch)["fused"].total,
        task.loss(fused({"target": flat[:, None]}))["fused"].total,
    )
    assert task.score(task.observe(batch)).samples == 5
    assert task.describe_target(flat[1]) == "-2.00"


def test_ordinal_thresholds_rise_whatever_is_learned_and_levels_count_those_passed():
    task = Ordinal(parts(), "target", [*NAMES, "highest"]).double()
    with torch.no_grad():
        task.gaps.copy_(torch.tensor([-8.0, 3.0]))
        task.first.fill_(-2.0)
    thresholds = task.thresholds()
    assert (thresholds.diff() > 0).all()
    scores = torch.tensor([[-3.0], [-1.9999], [0.5], [2.0]], dtype=torch.float64)
    assert task.levels(scores).tolist() == [0, 1, 2, 3]
    assert task.describe(scores[2]) == "high"


def test_ordinal_scores_equal_scikit_learn():
    generator = torch.Generator().manual_seed(2)
    said = torch.randint(4, (60,), generator=generator)
    true = torch.randint(4, (60,), generator=generator)
    scores = ordinal_scores(said, true, 4)
    kappa = cohen_kappa_score(said.numpy(), true.numpy(), weights="quadratic")
    assert scores.values["kappa"] == pytest.approx(kappa)
    assert scores.values["mae"] == pytest.approx((said - true).abs().double().mean().item())


def observations(kind: str) -> tuple:
    """A score function, and what it scores, sample by sample."""
    generator = torch.Generator().manual_seed(3)
    n = 120
    if kind == "classification":
        labels = torch.randint(3, (n,), generator=generator)
        right = torch.rand(n, generator=generator) < 0.6
        given = torch.where(right, labels, (labels + 1) % 3)
        return lambda x, y: classification_scores(x, y, 3), (given, labels)
    if kind == "multi_label":
        labels = (torch.rand(n, 4, generator=generator) < 0.3).float()
        noise = torch.randn(n, 4, generator=generator)
        return multi_label_scores, (labels + noise - 0.5, labels)
    if kind == "regression":
        targets = torch.randn(n, 2, generator=generator)
        return regression_scores, (targets + torch.randn(n, 2, generator=generator), targets)
    if kind == "ordinal":
        labels = torch.randint(4, (n,), generator=generator)
        moved = labels + torch.randint(-1, 2, (n,), generator=generator)
        return lambda x, y: ordinal_scores(x, y, 4), (moved.clamp(0, 3), labels)
    if kind == "matching":
        margin = torch.randn(n, 5, generator=generator)
        margin[:, 0] += 1
        task = Matching(parts(), "image", "text", candidates=5)
        return lambda m: task.score({"margin": m}), (margin,)
    words = torch.randint(3, 9, (n,), generator=generator)
    likelihood = -3 * words[:, None] + torch.randn(n, 10, generator=generator).double()
    likelihood[:, 0] += 1.5
    score = Captioning.score
    return lambda x, w: score(None, {"likelihood": x, "words": w}), (likelihood, words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind",
    some(["classification", "multi_label", "regression", "ordinal", "matching", "captioning"], 2),
)
def test_intervals_equal_scoring_every_resample(kind):
    score, given = observations(kind)
    scores = score(*given)
    assert scores.resampled.keys() == scores.values.keys()
    random = torch.Generator().manual_seed(0)
    n = len(given[0])
    drawn: dict[str, list[float]] = {}
    for _ in range(500):
        rows = torch.randint(n, (n,), generator=random)
        for metric, value in score(*(each[rows] for each in given)).values.items():
            drawn.setdefault(metric, []).append(value)
    for metric, values in drawn.items():
        low, high = scores.interval(metric)
        assert low < scores.values[metric] < high
        # Percentiles, of the same resampling; the correction for bias and skew is small here.
        ends = torch.tensor(values).quantile(torch.tensor([0.025, 0.975])).tolist()
        assert [low, high] == pytest.approx(ends, abs=0.15 * (high - low)), metric


def test_a_table_too_large_to_resample_has_no_interval_of_its_precision(monkeypatch):
    score, given = observations("multi_label")
    monkeypatch.setattr("multimodal.models.tasks.scores.MAX_TABLE", 100)
    scores = score(*given)
    assert scores.interval("mean_average_precision") is None
    assert scores.interval("f1") is not None


def test_an_ordinal_task_learns_levels_of_one_direction():
    torch.manual_seed(0)
    task = Ordinal(parts(), "target", NAMES)
    features = torch.randn(300, WIDTH)
    levels = torch.bucketize(features[:, 0].contiguous(), torch.tensor([-0.5, 0.8]))
    optimizer = torch.optim.Adam(task.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        task.losses(task.head(features), levels).mean().backward()
        optimizer.step()
    assert (task.levels(task.head(features)) == levels).double().mean() > 0.95


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda: Classification(parts(), "target", ["one"]), "two or more different names"),
        (lambda: Classification(parts(), "target", ["one", "one"]), "two or more different names"),
        (lambda: Ordinal(parts(), "target", NAMES, weight=-1.0), "weight=-1.0"),
        (lambda: MultiLabel(parts(), "target", NAMES, unimodal_weight=-0.1), "unimodal_weight"),
    ],
)
def test_invalid_arguments_are_rejected(make_one, message):
    with pytest.raises(ValueError, match=message):
        make_one()
