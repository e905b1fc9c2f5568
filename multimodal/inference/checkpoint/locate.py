"""From what a user names, a run or a checkpoint, to the checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from multimodal.config import stored_tree
from multimodal.config.tree import at
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.file import CheckpointError

FOLDER = "checkpoints"  # of a run


def checkpoint_at(path: str | Path) -> Path:
    """The checkpoint that ``path`` means: itself, or the best one of a run's folder.

    The best one has the best score by the metric that the run kept checkpoints by; without scores
    it is the newest that is whole.

    Raises:
        CheckpointError: if a folder holds no checkpoint, or none that is whole.
    """
    target = Path(path).expanduser()
    if not target.is_dir() or store.STEP_NAME.match(target.name):
        return target  # whoever reads it says if it is not there
    folder = target / FOLDER if (target / FOLDER).is_dir() else target
    newest = store.newest(folder)
    if newest is None:
        if (target / "sha256.json").is_file():
            return target  # a sharded checkpoint by another name
        raise CheckpointError(f"{target} holds no checkpoint{_hint(target)}")
    return _best(folder, newest)


def _best(folder: Path, newest: Path) -> Path:
    """The checkpoint with the best score among those that are there, else ``newest``."""
    content = store.head(newest)
    state: Any = content.get("callbacks", {})
    scores = state.get("Checkpoint", {}).get("scores", {}) if isinstance(state, dict) else {}
    known = {
        int(step): float(score)
        for step, score in scores.items()
        if int(step) in store.steps(folder) and math.isfinite(float(score))
    }
    if not known or "config" not in content:
        return newest
    mode = at(stored_tree(content["config"], newest), "callbacks.checkpoint.mode")
    sign = -1.0 if mode == "min" else 1.0
    step = max(known, key=lambda step: (sign * known[step], step))
    return store.steps(folder)[step]


def _hint(target: Path) -> str:
    runs = sorted(path.parent for path in target.glob(f"*/{FOLDER}"))[-3:]
    if runs:
        return f"; it holds runs, give one of them: {', '.join(map(str, runs))}"
    return (
        f"; expected a run's folder (with {FOLDER}/), a checkpoint, or, for multimodal.load, a "
        "model's folder (with model.safetensors)"
    )
