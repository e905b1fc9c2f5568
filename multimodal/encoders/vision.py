"""The vision transformer: images, depth maps, thermal pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from multimodal.encoders.transformer import GridTransformer, Positions, Stem
from multimodal.layers.pooling import Pooling
from multimodal.layers.stems import per_dim
from multimodal.layers.transformer import Transformer


class VisionTransformer(GridTransformer):
    """ViT (Dosovitskiy et al. 2021) on ``[B, in_channels, height, width]``.

    ``pre_norm=True`` in the trunk and ``pooling="class"`` make CLIP's (Radford et al. 2021,
    section 2.4), ``pooling="attention"`` SigLIP's (Zhai et al. 2023).

    Args:
        image_size: side of the square picture in pixels, or ``[height, width]``.
        in_channels: 3 for RGB, 1 for depth and thermal.
        stem: a partial of ``PatchStem`` or ``ConvStem``.
        trunk: the transformer.
        positions: ``learned``, or ``sincos`` for fixed two-dimensional ones.
        pooling: ``class``, ``mean`` or ``attention``.

    Raises:
        ValueError: when the image size is not a multiple of the patch size, and for choices that
            do not exist.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        in_channels: int,
        stem: Callable[..., Stem],
        trunk: Transformer,
        positions: Positions = "learned",
        pooling: Pooling = "class",
    ) -> None:
        size = per_dim(image_size, 2, "image_size")
        super().__init__(in_channels, size, stem, trunk, positions, pooling)
