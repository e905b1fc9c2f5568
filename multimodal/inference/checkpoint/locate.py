"""From what a user names, a run or a checkpoint, to the checkpoint."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from multimodal.config import stored_tree
from multimodal.config.tree import at
from multimodal.core import strict_json
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.file import CheckpointError

FOLDER = "checkpoints"  # of a run
SCORES = "scores.json"  # in it


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
        raise CheckpointError.mistake(f"{target} holds no checkpoint{_hint(target)}")
    return _best(folder, newest)


def _best(folder: Path, newest: Path) -> Path:
    """The whole checkpoint with the best score that is known, else ``newest``."""
    there = store.steps(folder)
    scores, sign = _scores(folder, newest)
    ranked = [step for step, score in scores.items() if step in there and math.isfinite(score)]
    for step in sorted(ranked, key=lambda step: (sign * scores[step], step), reverse=True):
        if there[step] == newest or store.is_whole(there[step]):
            return there[step]
    return newest


def _scores(folder: Path, newest: Path) -> tuple[dict[int, float], float]:
    """Step -> score as the run noted them, and 1 if higher is better, else -1."""
    mode, given = _noted(folder / SCORES) if (folder / SCORES).is_file() else _stored(newest)
    numbers = {
        int(step): float(score)
        for step, score in (given if isinstance(given, dict) else {}).items()
        if str(step).isdecimal() and isinstance(score, int | float)
    }
    return numbers, -1.0 if mode == "min" else 1.0


def _noted(file: Path) -> tuple[Any, Any]:
    """Mode and scores of a run's file."""
    try:
        content = strict_json.parse(file.read_bytes(), str(file))
    except ValueError as error:
        print(f"WARNING: {error}; the newest checkpoint is used", file=sys.stderr)
        return None, {}
    return (content.get("mode"), content.get("scores")) if isinstance(content, dict) else (None, {})


def _stored(newest: Path) -> tuple[Any, Any]:
    """Mode and scores in a checkpoint: those of the validations before it."""
    content = store.head(newest)
    callbacks = content.get("callbacks")
    own = callbacks.get("Checkpoint") if isinstance(callbacks, dict) else None
    tree = stored_tree(content["config"], newest) if "config" in content else {}
    scores = own.get("scores") if isinstance(own, dict) else None
    return at(tree, "callbacks.checkpoint.mode"), scores


def _hint(target: Path) -> str:
    runs = sorted(path.parent for path in target.glob(f"*/{FOLDER}"))[-3:]
    if runs:
        return f"; it holds runs, give one of them: {', '.join(map(str, runs))}"
    return (
        f"; expected a run's folder (with {FOLDER}/), a checkpoint, or, for multimodal.load, a "
        "model's folder (with model.safetensors)"
    )
