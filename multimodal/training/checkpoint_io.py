"""Checkpoints on disk: a kill cannot damage them, damage is noticed, reading executes nothing."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from multimodal.core.errors import UserError
from multimodal.core.files import TEMPORARY, NewFile, WriteError

STEP_NAME = re.compile(r"^step=(\d+)\.ckpt$")
_MARK = b"\nsha256:"  # then 64 hexadecimal digits; after the archive, where zip readers do not look
_FOOTER = len(_MARK) + 64


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, damaged, not to be written, or of something else."""


def write_atomically(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Saves to a temporary file in the same folder, syncs file and folder, and renames.

    Whatever happens in between, ``path`` holds either its old content or the new one, whole. The
    file ends with the SHA-256 of all before it, which `read` verifies.

    Raises:
        CheckpointError: if the file system refuses it (full, read-only); names path and space.
    """
    target = Path(path)
    digest = hashlib.sha256()
    whole = "The checkpoints that were there are untouched"
    advice = "Free some space, or lower callbacks.checkpoint.keep_last"
    try:
        with NewFile(target, whole, advice, digest) as file:
            torch.save(dict(checkpoint), cast("IO[bytes]", file))
            file.write(_MARK + digest.hexdigest().encode())
            if target.is_dir():  # a sharded one of the same step
                remove(target)
    except WriteError as error:
        raise CheckpointError(str(error)) from error


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint's content on the CPU; tensors and plain containers only (``weights_only``).

    A sharded one, which is a folder, reads as if it were of one file.

    Raises:
        CheckpointError: if there is no such file, its hash is not that of its content, or it is
            not a checkpoint of ours.
    """
    target = Path(path)
    if target.is_dir():
        from multimodal.training import sharded_io  # which builds on this module

        return sharded_io.read(target)
    if not target.is_file():
        near = ", ".join(str(p) for p in sorted(target.parent.glob("*.ckpt"))[-3:])
        raise CheckpointError(
            f"no checkpoint at {target}" + (f"; in that folder: {near}" if near else "")
        )
    content = load_plain(target)
    if "state_dict" not in content:
        raise CheckpointError(f"{target} is not a checkpoint of this framework: no `state_dict`")
    return content


def head(path: str | os.PathLike[str]) -> dict[str, Any]:
    """As `read`, but of a sharded checkpoint without the tensors; its hashes are verified too."""
    if Path(path).is_dir():
        from multimodal.training import sharded_io  # which builds on this module

        return sharded_io.head(path)
    return read(path)


def load_plain(target: Path) -> dict[str, Any]:
    """The dict of tensors and plain containers in a file of `write_atomically`.

    Raises:
        CheckpointError: if its hash is not that of its content, or it holds anything else.
    """
    _verify(target)
    try:
        content = torch.load(target, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged or foreign files
        raise CheckpointError(
            f"{target} cannot be read as a checkpoint (damaged, or it holds more than tensors and "
            f"plain containers): {error}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{target} is not a checkpoint of this framework: no `state_dict`")
    return content


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a checkpoint's file; of a folder, that of the file with all hashes."""
    target = Path(path)
    if target.is_dir():
        target = target / "sha256.json"
    return hashlib.sha256(target.read_bytes()).hexdigest()


def _verify(target: Path) -> None:
    """Compares the hash at the end of the file with that of all before it."""
    size = target.stat().st_size - _FOOTER
    with target.open("rb") as file:
        file.seek(max(size, 0))
        footer = file.read()
        if size <= 0 or not footer.startswith(_MARK):
            raise CheckpointError(
                f"{target} cannot be read as a checkpoint: it does not end with its hash (cut off, "
                "damaged, or not written by this framework)"
            )
        file.seek(0)
        digest, left = hashlib.sha256(), size
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    told, found = footer[len(_MARK) :].decode("ascii", "replace"), digest.hexdigest()
    if told != found:
        raise CheckpointError(
            f"hash mismatch: {target} cannot be trusted. It was saved as sha256 {told[:16]}..., "
            f"and is {found[:16]}... now: the file was damaged after it was written"
        )


def steps(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """Step -> checkpoint of that step in ``folder``, in ascending order."""
    found = [
        (int(match.group(1)), path)
        for path in Path(folder).glob("step=*.ckpt")
        if (match := STEP_NAME.match(path.name))
    ]
    return dict(sorted(found))


def newest(folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint of the highest step in ``folder`` that is whole; None when there is none.

    What is damaged is told on standard error, and the one before is tried.

    Raises:
        CheckpointError: if there are checkpoints, but none that is whole.
    """
    problems = []
    for path in reversed(steps(folder).values()):
        if (problem := _problem(path)) is None:
            return path
        problems.append(problem)
        print(f"WARNING: {problem}; trying the checkpoint before it", file=sys.stderr)
    if problems:
        raise CheckpointError(
            f"none of the {len(problems)} checkpoints in {folder} can be read:\n  "
            + "\n  ".join(problems)
        )
    return None


def _problem(path: Path) -> str | None:
    try:
        head(path)
    except CheckpointError as error:
        return str(error)
    return None


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Removes what killed saves have left in ``folder``, and returns what it was."""
    leftovers = [path for path in Path(folder).glob(f".step=*{TEMPORARY}*") if path.exists()]
    for path in leftovers:
        remove(path)
    return leftovers


def remove(path: Path) -> None:
    """Removes a checkpoint: a file, or the folder of a sharded one."""
    if path.is_dir():
        if not path.name.endswith(TEMPORARY):  # half removed, it would still look like one
            path = path.rename(path.with_name(f".{path.name}.old{TEMPORARY}"))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's door to `write_atomically` and `read`.

    A save that the file system refuses is told on standard error and raises nothing, since other
    ranks would wait for this one in a barrier: who cannot go on without it reads ``failure``.

    Attributes:
        failure: what the last save failed of; None if it did not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: CheckpointError | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Saves ``checkpoint`` at ``path``."""
        self.failure = None
        try:
            write_atomically(checkpoint, path)
        except CheckpointError as error:
            self.failure = error
            print(f"WARNING: {error}", file=sys.stderr)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content at ``path``, on the CPU, after its hash was verified."""
        return read(path)
