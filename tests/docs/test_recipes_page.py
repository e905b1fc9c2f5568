"""docs/recipes.md: every command is right, every figure is that of the benchmark it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from experiment_helpers import composed

from multimodal.config import check, normalize_args
from multimodal.data.benchmarks.catalogue import BENCHMARKS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recipes.md").read_text()
ROWS = [line.strip("|").split("|") for line in PAGE.splitlines() if "`multimodal train" in line]
COMMANDS = [re.search(r"`multimodal train ([^`]*)`", row[1])[1] for row in ROWS]
# `imagenet` top 1 66.6; `coco` text to image R@1 39.3, image to text R@1 56.3
FIGURES = [
    (row[0].strip(), name, figure.strip(), float(value))
    for row in ROWS
    for name, rest in re.findall(r"`(\w+)` ([^;]*)", row[2])
    for figure, value in re.findall(r"([A-Za-z][\w @]*?) (\d+\.\d)(?=,|$| *$)", rest)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_right(command):
    with composed(*normalize_args(shlex.split(command))) as cfg:
        check(cfg)


def test_the_figures_are_those_of_the_benchmarks():
    assert len(FIGURES) > 12
    for result, name, figure, value in FIGURES:
        assert name in BENCHMARKS
        content = yaml.safe_load((ROOT / "configs/evaluation" / f"{name}.yaml").read_text())
        published = content["sets"][name]["published"]["models"]
        given = {model: values.get(figure) for model, values in published.items()}
        assert value in given.values(), (result, name, figure, given)


def test_the_planted_twins_are_those_of_their_page():
    (row,) = [row for row in ROWS if "planted twins" in row[3]]
    page = (ROOT / "docs" / "negatives.md").read_text()
    before, after = re.search(r"(\d+\.\d) to (\d+\.\d)", row[3]).groups()
    assert f"| in-batch | {before} |" in page
    assert f"| mined, listed=batch | {after} |" in page
