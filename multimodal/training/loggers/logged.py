"""What a run has logged already, so that a resumed one repeats no step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from multimodal.core import strict_json
from multimodal.core.files import write_text


class LoggedSteps:
    """The last step that was logged and which metrics of it, kept in a file beside the run.

    The steps between a checkpoint and where its run ended are computed again when it is resumed,
    with the same values; they are logged already.

    Args:
        path: of the file.
        run: that the steps were logged to; what was logged to another one does not count.
    """

    def __init__(self, path: Path, run: str = "") -> None:
        self.path = path
        self.run = run
        self.step = -1
        self.metrics: set[str] = set()
        content = None
        if path.is_file():
            with suppress(ValueError):  # no note of ours: nothing is known to be logged
                content = strict_json.parse(path.read_bytes(), str(path))
        if isinstance(content, dict) and content.get("run") == run:
            self.step, self.metrics = int(content["step"]), set(content["logged"])

    def new(self, metrics: Mapping[str, float], step: int | None) -> dict[str, float]:
        """Those of ``metrics`` that were not logged of this step, or of a later one, before."""
        if step is None:
            return dict(metrics)
        if step < self.step:
            return {}
        known = self.metrics if step == self.step else set()
        return {name: value for name, value in metrics.items() if name not in known}

    def note(self, metrics: Mapping[str, float], step: int | None) -> None:
        """Keeps in mind that these are logged now; once they are where a killed run leaves them."""
        if step is None or not metrics:
            return
        known = self.metrics if step == self.step else set()
        self.step, self.metrics = step, known | set(metrics)
        content = {"run": self.run, "step": self.step, "logged": sorted(self.metrics)}
        with suppress(OSError):  # a full disk: then some steps are logged twice
            write_text(self.path, json.dumps(content) + "\n")
