"""The runner that comes with an exported folder: `runner.py` beside this, copied as ``run.py``."""

from __future__ import annotations

from pathlib import Path


def text() -> str:
    """Its source."""
    return (Path(__file__).parent / "runner.py").read_text("utf-8")
