"""Lightning saves and loads by our checkpoint files, at once or in the background."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from multimodal.inference.checkpoint.file import CheckpointError, write_atomically
from multimodal.inference.checkpoint.store import read


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's adapter for `write_atomically` and `read`.

    A failed save is reported on stderr and raises nothing, since other ranks would wait for this
    one in a barrier: callers that need the checkpoint read ``failure``.

    Attributes:
        failure: the error of the last save; None if it succeeded, or is not finished.
        in_background: whether `save_checkpoint` returns as soon as the content is copied to the
            host, and a thread writes the copy. One is written at a time: a save waits for the one
            before it. The process does not end before it is written, unless it is killed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: CheckpointError | None = None
        self.in_background = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Saves ``checkpoint`` at ``path``."""
        self.wait()
        self.failure = None
        if not self.in_background:
            self._write(checkpoint, path)
            return
        self._thread = threading.Thread(
            target=self._write_all, args=(host_copy(checkpoint), path), name="checkpoint"
        )
        self._thread.start()

    def is_writing(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Returns when nothing is being written.

        Raises:
            BaseException: what the writing thread raised, other than a `CheckpointError`.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write_all(self, checkpoint: dict[str, Any], path: Any) -> None:
        try:
            self._write(checkpoint, path)
        except BaseException as error:  # it is raised where the result is asked for
            self._error = error

    def _write(self, checkpoint: dict[str, Any], path: Any) -> None:
        try:
            write_atomically(checkpoint, path)
        except CheckpointError as error:
            self.failure = error
            print(f"WARNING: {error}", file=sys.stderr)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content at ``path``, on the CPU, after its hash was verified."""
        self.wait()
        return read(path)


def host_copy(content: Any) -> Any:
    """``content`` with its own tensors, on the CPU; a tensor that it holds twice is copied once.

    Args:
        content: dicts, lists and tuples of tensors and plain values.
    """
    return _copied(content, {})


def _copied(value: Any, known: dict[Any, Tensor]) -> Any:
    if isinstance(value, Tensor):
        place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if not value.numel() or place not in known:
            copy = torch.empty_like(value, device="cpu").copy_(value.detach())
            if not value.numel():
                return copy
            known[place] = copy
        return known[place]
    if isinstance(value, Mapping):
        copies = {key: _copied(item, known) for key, item in value.items()}
        return copies if type(value) is dict else _like(value, copies)
    if isinstance(value, list | tuple):
        items = [_copied(item, known) for item in value]
        return items if type(value) is list else type(value)(items)
    return value


def _like(value: Any, copies: dict[Any, Any]) -> Any:
    """A mapping of the class of ``value``, as state dicts are."""
    same = type(value)()
    same.update(copies)
    vars(same).update(vars(value))  # a state dict's `_metadata`
    return same
