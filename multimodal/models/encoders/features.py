"""Precomputed features as an encoder: any modality that arrives as vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.core.errors import InputMismatchError
from multimodal.models.encoders.transformer import check_mask
from multimodal.models.layers.pooling import MeanPool
from multimodal.models.layers.transformer import MLP


class FeatureEncoder(nn.Module):
    """Vectors ``[B, F]`` or token sequences ``[B, T, F]``: unchanged, or projected.

    Args:
        in_features: F.
        width: width of the result; None: F, unprojected.
        hidden: width of a hidden layer between; None: the projection is linear.
        norm: a LayerNorm on what comes in, without parameters.

    Raises:
        ValueError: if given ``hidden`` without ``width``, and for inputs mismatched shapes.
    """

    def __init__(
        self,
        in_features: int,
        width: int | None = None,
        hidden: int | None = None,
        norm: bool = False,
    ) -> None:
        super().__init__()
        if hidden is not None and width is None:
            raise ValueError(f"hidden={hidden} needs a width: the features are projected to it")
        self.in_features = in_features
        self.width = in_features if width is None else width
        self.norm = nn.LayerNorm(in_features, elementwise_affine=False) if norm else nn.Identity()
        self.projection: nn.Module
        if width is None:
            self.projection = nn.Identity()
        elif hidden is None:
            self.projection = nn.Linear(in_features, width)
        else:
            self.projection = MLP(in_features, hidden, out=width)
        self.pool = MeanPool()

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Project every vector; the features are the mean of a sample's real ones.

        Args:
            inputs: float ``[B, F]`` or ``[B, T, F]``.
            mask: bool ``[B, T]``, True where a vector is real.

        Raises:
            ValueError: if given inputs or a mask mismatched shapes or type.
        """
        self.check_inputs(inputs, mask)
        sequence = inputs[:, None] if inputs.ndim == 2 else inputs
        if mask is not None:  # masked values, even NaN, must not reach the result
            sequence = torch.where(mask[..., None], sequence, 0.0)
        tokens = self.projection(self.norm(sequence))
        return EncoderOutput(self.pool(tokens, mask), tokens, mask)

    def check_inputs(self, inputs: Tensor, mask: Tensor | None) -> None:
        """Refuses what `forward` cannot take.

        Raises:
            InputMismatchError: naming the expected and the given input.
        """
        if (
            inputs.ndim not in (2, 3)
            or inputs.shape[-1] != self.in_features
            or not inputs.is_floating_point()
        ):
            given = "" if inputs.is_floating_point() else f"{inputs.dtype} "
            raise InputMismatchError(
                f"FeatureEncoder expects inputs [B, {self.in_features}] or "
                f"[B, T, {self.in_features}], got {given}{list(inputs.shape)}"
            )
        check_mask(mask, (inputs.shape[0], 1) if inputs.ndim == 2 else inputs.shape[:2])
