"""A checkpoint of one file: no kill damages it, damage is noticed, reading executes nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from multimodal.core.errors import UserError
from multimodal.core.files import TEMPORARY, NewFile, WriteError

_MARK = b"\nsha256:"  # then 64 hexadecimal digits; after the archive, where zip readers do not look


_FOOTER = len(_MARK) + 64


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, damaged, unwritable, or not of this run."""


def write_atomically(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Saves to a temporary file in the same folder, syncs file and folder, and renames.

    At any time, ``path`` holds either its complete old content or the complete new one. The file
    ends with the SHA-256 of all before it, which `read` verifies.

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
    recorded, actual = footer[len(_MARK) :].decode("ascii", "replace"), digest.hexdigest()
    if recorded != actual:
        raise CheckpointError(
            f"hash mismatch: {target} cannot be trusted. It was saved as sha256 "
            f"{recorded[:16]}..., and is {actual[:16]}... now: the file was damaged after it was "
            "written"
        )


def remove(path: Path) -> None:
    """Removes a checkpoint: a file, or the folder of a sharded one."""
    if path.is_dir():
        if not path.name.endswith(TEMPORARY):  # a half-removed one would still look valid
            path = path.rename(path.with_name(f".{path.name}.old{TEMPORARY}"))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
