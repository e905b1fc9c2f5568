"""Checkpoints, of one file or sharded: read them, list those of a folder, find the newest."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from multimodal.core.files import TEMPORARY
from multimodal.core.process.quiet import note
from multimodal.inference.checkpoint.file import CheckpointError, load_plain, remove

STEP_NAME = re.compile(r"^step=(\d+)\.ckpt$")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint's content on the CPU; tensors and plain containers only (``weights_only``).

    A sharded one, which is a folder, reads as if it were of one file.

    Raises:
        CheckpointError: if there is no such file, its hash is not that of its content, or it is
            not a checkpoint of ours.
    """
    target = Path(path)
    if target.is_dir():
        from multimodal.inference.checkpoint import sharded  # which imports torch's FSDP

        return sharded.read(target)
    if not target.is_file():
        near = ", ".join(str(p) for p in sorted(target.parent.glob("*.ckpt"))[-3:])
        raise CheckpointError.mistake(
            f"no checkpoint at {target}" + (f"; in that folder: {near}" if near else "")
        )
    content = load_plain(target)
    if "state_dict" not in content:
        raise CheckpointError(f"{target} is not a checkpoint of this framework: no `state_dict`")
    return content


def head(path: str | os.PathLike[str]) -> dict[str, Any]:
    """As `read`, but of a sharded checkpoint without the tensors; its hashes are verified too."""
    if Path(path).is_dir():
        from multimodal.inference.checkpoint import sharded

        return sharded.head(path)
    return read(path)


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a checkpoint's file; of a folder, that of the file with all hashes."""
    target = Path(path)
    if target.is_dir():
        target = target / "sha256.json"
    return hashlib.sha256(target.read_bytes()).hexdigest()


def steps(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """Step -> checkpoint of that step in ``folder``, in ascending order."""
    checkpoints = [
        (int(match.group(1)), path)
        for path in Path(folder).glob("step=*.ckpt")
        if (match := STEP_NAME.match(path.name))
    ]
    return dict(sorted(checkpoints))


def newest(folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint of the highest step in ``folder`` that is whole; None when there is none.

    Damaged files are reported on stderr; the previous checkpoint is tried.

    Raises:
        CheckpointError: if there are checkpoints, but none that is whole.
    """
    problems = []
    for path in reversed(steps(folder).values()):
        if (problem := _problem(path)) is None:
            return path
        problems.append(problem)
        note(f"WARNING: {problem}; trying the checkpoint before it")
    if problems:
        raise CheckpointError(
            f"none of the {len(problems)} checkpoints in {folder} can be read:\n  "
            + "\n  ".join(problems)
        )
    return None


def is_whole(path: Path) -> bool:
    """Whether a checkpoint can be read; errors are reported on stderr."""
    if (problem := _problem(path)) is not None:
        note(f"WARNING: {problem}")
    return problem is None


def _problem(path: Path) -> str | None:
    try:
        head(path)
    except CheckpointError as error:
        return str(error)
    return None


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Removes and returns the leftovers of killed saves in ``folder``."""
    leftovers = [path for path in Path(folder).glob(f".step=*{TEMPORARY}*") if path.exists()]
    for path in leftovers:
        remove(path)
    return leftovers
