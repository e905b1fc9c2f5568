"""Train multimodal embedding models from configuration files."""

import sys
from typing import TYPE_CHECKING

from multimodal.core.imports.former import FormerModules
from multimodal.core.imports.lazy import lazy

if TYPE_CHECKING:
    from multimodal.inference.embedder import Embedder
    from multimodal.inference.importing import import_weights
    from multimodal.inference.load import load_embedder as load
else:
    __getattr__, __dir__ = lazy(__name__)

sys.meta_path.append(FormerModules())

__version__ = "0.1.0"

__all__ = ["Embedder", "__version__", "import_weights", "load"]
