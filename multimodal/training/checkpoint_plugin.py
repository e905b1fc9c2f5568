"""Lightning saves and loads by our checkpoint files."""

from __future__ import annotations

import sys
from typing import Any

from pytorch_lightning.plugins.io import TorchCheckpointIO

from multimodal.inference.checkpoint.file import CheckpointError, write_atomically
from multimodal.inference.checkpoint.store import read


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's adapter for `write_atomically` and `read`.

    A failed save is reported on stderr and raises nothing, since other ranks would wait for this
    one in a barrier: callers that need the checkpoint read ``failure``.

    Attributes:
        failure: the error of the last save; None if it succeeded.
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
