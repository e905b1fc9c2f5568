"""The transformer on series: inertial sensors, and any other signal sampled at a fixed rate."""

from __future__ import annotations

from collections.abc import Callable

from multimodal.models.encoders.transformer import GridTransformer, Positions, Stem
from multimodal.models.layers.pooling import Pooling
from multimodal.models.layers.transformer import Transformer


class IMUTransformer(GridTransformer):
    """A transformer on series ``[B, in_channels, length]`` cut into windows.

    ImageBind (Girdhar et al. 2023, section 3.2) projects windows of 8 samples of 6 channels
    (accelerometer and gyroscope); nothing here depends on what the channels mean.

    Args:
        in_channels: channels of the series.
        length: samples per channel.
        stem: a partial of ``PatchStem`` (windows) or ``ConvStem``.
        trunk: the transformer.
        positions: ``learned``, or ``sincos`` for fixed ones.
        pooling: ``class``, ``mean``, ``last`` or ``attention``.
        patch_dropout: share of the tokens left out in training (FLIP).

    Raises:
        ValueError: if the length is not a multiple of the window, and for choices that do not
            exist.
    """

    def __init__(
        self,
        in_channels: int,
        length: int,
        stem: Callable[..., Stem],
        trunk: Transformer,
        positions: Positions = "learned",
        pooling: Pooling = "class",
        patch_dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, (length,), stem, trunk, positions, pooling, patch_dropout)
