"""What a checkpoint is good for: load, embed, search, serve; weights from elsewhere, too."""

from typing import TYPE_CHECKING

from multimodal.core.imports.lazy import lazy

if TYPE_CHECKING:
    from multimodal.inference.checkpoint.file import CheckpointError
    from multimodal.inference.checkpoint.load import load_model
    from multimodal.inference.embedded_source import EmbeddedSource
    from multimodal.inference.embedder import Embedder
    from multimodal.inference.importing import import_weights
    from multimodal.inference.load import embedder_of, load_embedder
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "CheckpointError",
    "EmbeddedSource",
    "Embedder",
    "embedder_of",
    "import_weights",
    "load_embedder",
    "load_model",
]
