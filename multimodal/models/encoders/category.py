"""A category as a modality: the side of the body, the kind of device, the place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.core.errors import InputMismatchError


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
        self.num_categories = num_categories
        self.embedding = nn.Embedding(num_categories, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encode a batch of numbers ``[B]`` int64; ``mask`` must be None."""
        self.check_inputs(inputs, mask)
        features = self.embedding(inputs)
        return EncoderOutput(features, features[:, None])

    def check_inputs(self, inputs: Tensor, mask: Tensor | None) -> None:
        """Refuses what `forward` cannot take.

        Raises:
            InputMismatchError: naming the expected and the given input.
        """
        if inputs.ndim != 1 or inputs.is_floating_point() or mask is not None:
            raise InputMismatchError(
                f"CategoryEncoder expects integers [B] and no mask, got {inputs.dtype} "
                f"{list(inputs.shape)}{'' if mask is None else ' and a mask'}"
            )
        # On an accelerator the comparison would wait for the device in every step, and an exported
        # graph cannot make it.
        if torch.compiler.is_exporting() or inputs.device.type != "cpu" or not len(inputs):
            return
        least, most = int(inputs.min()), int(inputs.max())
        if least < 0 or most >= self.num_categories:
            raise InputMismatchError(
                f"CategoryEncoder expects numbers from 0 to {self.num_categories - 1} "
                f"(num_categories={self.num_categories}), got {least if least < 0 else most}"
            )
