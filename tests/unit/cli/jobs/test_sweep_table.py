"""The table of a sweep shows intervals beside their figures, and keeps the bounds in the CSV."""

from __future__ import annotations

import csv
import json

import pytest

from multimodal.cli.jobs.records import SweepError, value_of
from multimodal.cli.jobs.sweep_table import show_table, table_rows, write_table

METRIC = "emoji.image_to_text.r@1"


def jobs(folder):
    """Two finished jobs, the second of a version without intervals."""
    for number, interval in enumerate([{"interval": {"r@1": [0.0625, 0.25]}}, {}]):
        job = folder / str(number)
        (job / ".hydra").mkdir(parents=True)
        (job / ".hydra" / "overrides.yaml").write_text(f"- seed={number}\n")
        figures = {"r@1": 0.125 * (number + 1), **interval, "not_above": []}
        metrics = {"emoji": {"split": "test", "image_to_text": figures}}
        (job / "metrics.json").write_text(json.dumps(metrics))
    return {str(number): ([f"seed={number}"], "done") for number in range(2)}


def test_an_interval_stands_beside_its_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    rows = table_rows(tmp_path, jobs(tmp_path))
    show_table(rows, METRIC)
    printed = capsys.readouterr().out
    assert "0.125 (0.0625–0.25)" in printed
    assert "0.25  " in printed  # nothing behind it
    assert "interval" not in printed
    write_table(tmp_path / "sweep.csv", rows)
    with (tmp_path / "sweep.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    ends = [f"emoji.image_to_text.interval.r@1.{end}" for end in ("low", "high")]
    assert [first[end] for end in ends] == ["0.0625", "0.25"]
    assert [second[end] for end in ends] == ["", ""]


def test_a_missing_metric_is_answered_with_the_figures_only(tmp_path):
    jobs(tmp_path)
    assert value_of(tmp_path / "0", METRIC) == 0.125
    with pytest.raises(SweepError, match=r"there are emoji.image_to_text.r@1$"):
        value_of(tmp_path / "0", "recall")
