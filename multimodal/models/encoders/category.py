"""A category as a modality: the side of the body, the kind of device, the place."""

from __future__ import annotations

from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput


class CategoryEncoder(nn.Module):
    """A learned vector per category: one token.

    Args:
        num_categories: how many there are.
        width: width of the vector.

    Raises:
        ValueError: if given fewer than two categories, and for inputs mismatched shapes or type.
    """

    def __init__(self, num_categories: int, width: int) -> None:
        super().__init__()
        if num_categories < 2:
            raise ValueError(f"num_categories={num_categories}: expected at least 2")
        self.width = width
        self.embedding = nn.Embedding(num_categories, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encode a batch of numbers ``[B]`` int64; ``mask`` must be None."""
        if inputs.ndim != 1 or inputs.is_floating_point() or mask is not None:
            raise ValueError(
                f"CategoryEncoder expects integers [B] and no mask, got {inputs.dtype} "
                f"{list(inputs.shape)}"
            )
        features = self.embedding(inputs)
        return EncoderOutput(features, features[:, None])
