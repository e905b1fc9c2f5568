"""Some cases of a test among the quick ones, the others among the heavy ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], every: int) -> list[Any]:
    """Parameters of which each ``every``-th is quick: the first, and then evenly."""
    cases = (value if isinstance(value, tuple) else (value,) for value in values)
    return [
        pytest.param(*case, marks=[pytest.mark.heavy] if place % every else [])
        for place, case in enumerate(cases)
    ]
