"""Checkpoints on disk: a kill cannot damage them, and reading one executes nothing."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

STEP_NAME = re.compile(r"^step=(\d+)\.ckpt$")


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, or of something else."""


def write_atomically(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Saves to a temporary file in the same folder, syncs file and folder, and renames.

    Whatever happens in between, ``path`` holds either its old content or the new one, whole.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=target.parent, prefix=f".{target.name}.", suffix=".tmp", delete=False
    ) as file:
        try:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint's content on the CPU; tensors and plain containers only (``weights_only``).

    Raises:
        CheckpointError: if there is no such file, or it is not a whole checkpoint of ours.
    """
    target = Path(path)
    if not target.is_file():
        near = ", ".join(str(p) for p in sorted(target.parent.glob("*.ckpt"))[-3:])
        raise CheckpointError(
            f"no checkpoint at {target}" + (f"; in that folder: {near}" if near else "")
        )
    try:
        content = torch.load(target, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged or foreign files
        raise CheckpointError(
            f"{target} cannot be read as a checkpoint (damaged, or it holds more than tensors and "
            f"plain containers): {error}"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(f"{target} is not a checkpoint of this framework: no `state_dict`")
    return content


def newest(folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint of the highest step in ``folder``, None when there is none."""
    steps = [
        (int(match.group(1)), path)
        for path in Path(folder).glob("step=*.ckpt")
        if (match := STEP_NAME.match(path.name))
    ]
    return max(steps)[1] if steps else None


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's door to `write_atomically`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Saves ``checkpoint`` at ``path``."""
        write_atomically(checkpoint, path)
