"""What is marked as not distinguishable from chance or a shortcut, and what is not."""

from __future__ import annotations

import io
import json
import re

import pytest
import torch
from rich.console import Console
from torch.nn.functional import one_hot

from multimodal.core.bootstrap import Interval, mean_interval
from multimodal.evaluation.evaluators.probe import ProbeResult
from multimodal.evaluation.evaluators.retrieval import RetrievalResult
from multimodal.evaluation.evaluators.zero_shot import ZeroShotResult
from multimodal.evaluation.metrics.probe import Samples, probe
from multimodal.evaluation.metrics.retrieval import retrieval, retrieval_by_scalar
from multimodal.evaluation.metrics.zero_shot import zero_shot
from multimodal.evaluation.results import Results
from multimodal.evaluation.task_results import TaskResult, tasks_table
from multimodal.evaluation.uncertainty import not_above
from multimodal.models.tasks.scores import classification_scores, regression_scores

N = 100


def right_in(first: int, last: int) -> torch.Tensor:
    """Queries of which ``first`` to ``last`` find their own item, the others the next one's."""
    places = (torch.arange(N) + 1) % N
    places[first:last] = torch.arange(first, last)
    return one_hot(places, N).float()


def direction(hits: int, by_length: range | None = None) -> RetrievalResult:
    keys = torch.arange(N)
    baseline = None
    if by_length is not None:  # the lengths of these queries alone tell which is theirs
        lengths = keys * 1.0
        asked = (keys + 1) % N * 1.0
        asked[list(by_length)] = lengths[list(by_length)]
        baseline = retrieval_by_scalar(asked, lengths, keys, keys)
    scores = retrieval(right_in(0, hits), torch.eye(N), keys, keys)
    return RetrievalResult("set", "audio", "text", True, scores, baseline)


def test_an_interval_that_reaches_the_reference_is_not_above_it():
    references = {"chance": 0.1, "majority": 0.3}
    assert not_above(Interval(0.31, 0.5), references) == []
    assert not_above(Interval(0.3, 0.5), references) == ["majority"]
    assert not_above(Interval(0.05, 0.5), references) == ["chance", "majority"]
    assert not_above(Interval(0.01, 0.02), references) == ["chance", "majority"]  # worse is no more
    assert not_above(Interval(float("nan"), float("nan")), references) == ["chance", "majority"]
    # An error is better when it is lower.
    assert not_above(Interval(0.31, 0.5), {"chance": 0.6}, "rmse") == []
    assert not_above(Interval(0.31, 0.5), {"chance": 0.4}, "rmse") == ["chance"]
    assert not_above(Interval(0.31, 0.5), {"chance": 0.2}, "mae") == ["chance"]


def test_a_row_of_retrieval_has_intervals_and_says_what_it_reaches():
    row = direction(20).row()
    assert row["interval"]["r@1"] == list(mean_interval([1.0] * 20 + [0.0] * 80))
    assert row["interval"].keys() == {"r@1", "r@5", "r@10", "map"}
    for name, (low, high) in row["interval"].items():
        assert low <= row[name] <= high
    assert row["not_above"] == []
    assert direction(1).row()["not_above"] == ["chance"]
    assert direction(0).row()["not_above"] == ["chance"]
    assert direction(N).row()["interval"]["r@1"][0] == pytest.approx(0.025 ** (1 / N))
    assert json.loads(json.dumps(row)) == row


def test_a_collapsed_model_is_not_above_chance():
    keys = torch.arange(N)
    scores = retrieval(torch.ones(N, 3), torch.ones(N, 3), keys, keys)
    assert RetrievalResult("set", "image", "text", True, scores).not_above == ["chance"]


@pytest.mark.parametrize(
    ("hits", "by_length", "reached"),
    [
        (40, range(5), []),
        (20, range(20), ["duration_only"]),  # the same queries
        (20, range(60, 78), ["duration_only"]),  # others, as many within the error
        # 8 more, of the same queries: the length lies in the interval, though never behind.
        (22, range(14), ["duration_only"]),
        # Above the length's figure, but not by more than both figures' error.
        (15, range(60, 67), ["duration_only"]),
        (1, range(1), ["chance", "duration_only"]),
    ],
)
def test_the_length_alone_is_a_reference(hits, by_length, reached):
    result = direction(hits, by_length)
    assert result.not_above == reached
    row = result.row()
    assert row["not_above"] == reached
    baseline = row["duration_only"]
    low, high = baseline["interval"]["r@1"]
    assert low <= baseline["r@1"] == len(by_length) / N <= high
    assert baseline["not_above"] == ([] if len(by_length) > 4 else ["chance"])


def test_zero_shot_is_compared_with_chance_and_the_commonest_answer():
    labels = torch.tensor([0] * 60 + [1] * 20 + [2] * 20)

    def result(given: torch.Tensor) -> ZeroShotResult:
        scores = zero_shot(one_hot(given, 3).float(), torch.eye(3), labels)
        return ZeroShotResult("set", "imu", "label", True, scores, ["a", "b", "c"], ["{}"])

    always = result(torch.zeros(N, dtype=torch.int64))
    assert always.scores.top1 == 0.6  # far above the chance of a third, and worth nothing
    assert always.not_above == ["majority"]
    good = result(torch.where(torch.arange(N) % 5 == 0, 0, labels))
    row = good.row()
    assert row["not_above"] == []
    assert row["interval"].keys() == {"top@1", "top@5", "mean_per_class"}
    for name, (low, high) in row["interval"].items():
        assert low <= row[name] <= high
    assert result((labels + 1) % 3).not_above == ["chance", "majority"]


def test_a_probe_has_intervals():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % 4
    signal = one_hot(labels, 4) + 0.1 * torch.randn(N, 4, generator=generator)
    noise = torch.randn(N, 4, generator=generator)

    def row(vectors: torch.Tensor) -> dict:
        samples = Samples(vectors.float().numpy(), labels.numpy())
        scores = probe(samples.take(range(50)), samples.take(range(50, N)), shots=())
        return ProbeResult("set", "imu", "label", scores).row()

    for kind in ("linear", "neighbours"):
        known = row(signal)[kind]
        low, high = known["interval"]["top1"]
        assert 0.9 < low < known["top1"] <= high
        assert known["not_above"] == []
        assert "chance" in row(noise)[kind]["not_above"]


def test_rows_of_tasks_have_intervals():
    labels = torch.arange(N) % 2
    good = classification_scores(torch.where(torch.arange(N) < 80, labels, 1 - labels), labels, 2)
    guess = classification_scores((torch.arange(N) // 2) % 2, labels, 2)
    error = regression_scores(torch.randn(N, 1), torch.arange(N * 1.0)[:, None])
    found = TaskResult("set", "task", good, alone={"imu": guess})
    row = found.row()
    assert row["not_above"] == []
    assert row["interval"]["accuracy"] == list(mean_interval([1.0] * 80 + [0.0] * 20))
    assert row["alone"]["imu"]["accuracy"] == 0.5
    assert row["alone"]["imu"]["interval"].keys() == {"accuracy", "mean_per_class"}
    far = TaskResult("set", "far", error)
    assert far.row()["not_above"] == ["chance"]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(tasks_table([found, far]))
    lines = console.export_text().splitlines()
    [line] = [each for each in lines if "all modalities" in each and "accuracy" in each]
    assert re.search(r"0\.800 +\(0\.7\d\d–0\.8\d\d\)", line)
    assert "≈" not in line
    [line] = [each for each in lines if "imu alone" in each]
    assert "≈" in line
    [line] = [each for each in lines if "all modalities" in each and "mae" in each]
    assert "≈" in line


def test_the_terminal_shows_intervals_and_dims_what_is_no_success():
    results = Results()
    results.outcomes += [direction(40, range(5)), direction(1)]
    console = Console(width=100, record=True, file=io.StringIO(), force_terminal=True)
    console.print(results.table())
    printed = console.export_text(styles=True)
    first, second = (line for line in printed.splitlines() if "audio → text" in line)
    low, high = (f"{100 * end:.1f}" for end in mean_interval([1.0] * 40 + [0.0] * 60))
    assert f"({low}–{high})" in first
    assert "\x1b[2m" not in first  # dim
    assert "≈" not in first
    assert "\x1b[2m" in second
    assert "≈" in second
    assert "95 % interval" in printed
    # A table of 80 columns still has all figures.
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results.table())
    assert f"({low}–{high})" in console.export_text()
