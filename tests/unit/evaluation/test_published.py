"""The table of a benchmark's figures beside the published ones."""

import pytest
from rich.console import Console

from multimodal.evaluation.benchmarks import Published, compare, section, terminal_table

METRICS = {
    "a": {"zero_shot_image_label": {"top@1": 0.25, "interval": {"top@1": [0.2, 0.3]}}},
    "b": {"missing": {"text": "no tower"}},
}
PUBLISHED = {
    "a": Published({"top 1": "zero_shot_image_label/top@1"}, {"X": {"top 1": 66.6}}, "Paper 2020"),
    "b": Published({"R@1": "text_to_image/r@1"}, {"X": {"R@1": 39.3}, "Y": {}}),
    "c": None,
}


def test_figures_stand_beside_the_published_ones():
    first, second = compare(PUBLISHED, METRICS)
    assert first[:3] == ("a", "top 1", 25.0)
    assert first.interval == pytest.approx((20, 30))
    assert first.others == {"X": 66.6}
    assert second == ("b", "R@1", None, None, {"X": 39.3})


def test_the_tables_show_them():
    rows = compare(PUBLISHED, METRICS)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal_table(rows))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["a", "top", "1", "25.0", "20.0–30.0", "X", "66.6"] in lines
    assert ["b", "R@1", "–", "X", "39.3"] in lines
    body = section(rows, {"a": "Paper 2020"}).body
    assert "Paper 2020" in body
    assert "left:66.6%" in body
    assert body.count("width:25.0%") == 1


def test_a_figure_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="'top 5' is none of the figures top 1"):
        Published({"top 1": "x/top@1"}, {"X": {"top 5": 90.0}})
