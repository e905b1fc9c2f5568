"""The page on objectives is true."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from multimodal.objectives.interfaces import compatible
from multimodal.objectives.kernels.fused import has_fused_kernel
from multimodal.objectives.kernels.hardest import hardest_k

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "objectives.md").read_text()


def choice(group: str, name: str):
    return instantiate(OmegaConf.load(ROOT / "configs" / group / f"{name}.yaml"))


def names(group: str) -> set[str]:
    return {path.stem for path in (ROOT / "configs" / group).glob("*.yaml")}


def table(heading: str) -> list[list[str]]:
    """Cells of the first table of a section, without its rule."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [
        [cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows if "---" not in row
    ]


GRID = table("Compatibility")


@pytest.mark.parametrize("row", GRID[1:], ids=lambda row: row[0])
def test_combinations(row):
    loss = choice("loss", row[0])
    for name, said in zip(GRID[0][1:], row[1:], strict=True):
        strategy = choice("negatives", name)
        if said == "no":
            assert compatible(loss, strategy) is not None, name
            continue
        assert compatible(loss, strategy) is None, name
        quickest = (
            "fused"
            if has_fused_kernel(loss, strategy)
            else "mined"
            if hardest_k(loss, strategy)
            else "yes"
        )
        assert said.split(",")[0] == quickest, name


def test_every_choice_is_on_the_page():
    assert {row[0] for row in GRID[1:]} == names("loss")
    assert {*GRID[0][1:], "filtered"} == names("negatives")
    for heading, group in (
        ("Similarity", "similarity"),
        ("Losses", "loss"),
        ("Negatives", "negatives"),
        ("Candidates", "candidates"),
        ("Self-distillation", "self_distillation"),
    ):
        assert {row[0] for row in table(heading)[1:]} == names(group)
