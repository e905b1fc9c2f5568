"""Every promise of docs/reliability.md names tests that are there, and says which are slow."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "docs" / "reliability.md").read_text().splitlines()
    if line.startswith("|") and "test_" in line
]
FILES = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}


@cache
def slow_tests(file: str) -> dict[str, bool]:
    """Test -> whether every case of it is slow."""
    path = FILES[file]
    runs = path.parent.name == "runs"
    tree = ast.parse(path.read_text())
    settings = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
    all_slow = any("pytestmark" in line and "slow" in line for line in settings)
    slow = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = [ast.unparse(each) for each in node.decorator_list]
            quick = "pytest.mark.quick" in marks or "pytest.mark.heavy" in marks
            slow[node.name] = all_slow or "pytest.mark.slow" in marks or (runs and not quick)
    return slow


def named(row: str) -> list[tuple[str, str]]:
    """The files and tests that a row names; ``::test`` stands for one of the file before."""
    names, file = [], ""
    for given, test in re.findall(r"`(test_\w+\.py)?(?:::)?(test_\w+)?(?:\[[^\]]*\])?`", row):
        file = given or file
        if file and (given or test):
            names.append((file, test))
    return names


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_a_promise_names_tests_that_are_there_and_says_which_are_slow(row):
    names = named(row)
    assert names
    for file, test in names:
        assert file in FILES
        assert not test or test in slow_tests(file), f"{file} has no {test}"
        every = [slow_tests(file)[test]] if test else list(slow_tests(file).values())
        assert not all(every) or "slow" in row, f"{file}::{test} is slow"
