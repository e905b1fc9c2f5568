"""Whole runs, each in processes of its own: slow, unless a test says that it is quick."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("quick") is None:
            item.add_marker(pytest.mark.slow)
