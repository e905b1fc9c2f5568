"""Small things that all rooms need."""

from typing import TYPE_CHECKING

from multimodal.core.imports.lazy import lazy

if TYPE_CHECKING:
    from multimodal.core.batch import Batch, EncoderOutput
    from multimodal.core.errors import UserError
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = ["Batch", "EncoderOutput", "UserError"]
