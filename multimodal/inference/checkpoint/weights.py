"""Which weights of a checkpoint are used: those that learned, or their moving average."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from multimodal.config import stored_tree
from multimodal.config.tree import at
from multimodal.inference.checkpoint.file import CheckpointError

STATE = "ema"  # its key in a checkpoint: name of a trained parameter -> average


CHOICES = ("average", "raw")


def uses_average(
    checkpoint: Mapping[str, Any], path: str | Path, choice: str | None = None
) -> bool:
    """Whether to evaluate the moving average in a checkpoint.

    Args:
        checkpoint: as read.
        path: of it, for messages.
        choice: ``average`` or ``raw``; None: as the run itself evaluates, which is the average
            where there is one, unless ``callbacks.ema.evaluate`` was false.

    Raises:
        CheckpointError: if given another choice, or if there is no average.
    """
    if choice not in (None, *CHOICES):
        raise CheckpointError(f"weights={choice}: expected {' or '.join(CHOICES)}, or null")
    if STATE not in checkpoint:
        if choice == "average":
            raise CheckpointError(
                f"weights=average: {path} holds no moving average, its run was not trained with "
                "callbacks=ema; leave weights out"
            )
        return False
    if choice is None:
        own = at(stored_tree(checkpoint["config"], path), "callbacks.ema.evaluate")
        return own is not False
    return choice == "average"


def weights_of(
    checkpoint: Mapping[str, Any], path: str | Path, choice: str | None = None
) -> dict[str, Tensor]:
    """The state dict of a checkpoint's module for evaluation; see `uses_average`."""
    average = checkpoint[STATE] if uses_average(checkpoint, path, choice) else {}
    return {**checkpoint["state_dict"], **average}
