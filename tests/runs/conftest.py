"""Whole runs, each in processes of its own: slow, unless a test says that it is quick, or heavy."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        kept = any(item.get_closest_marker(name) for name in ("quick", "heavy"))
        if HERE in item.path.parents and not kept:
            item.add_marker(pytest.mark.slow)
