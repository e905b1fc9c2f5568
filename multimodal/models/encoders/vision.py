"""The vision transformer: images, depth maps, thermal pictures, and clips of video."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from multimodal.core.batch import EncoderOutput
from multimodal.models.encoders.transformer import GridTransformer, Positions, Stem
from multimodal.models.layers.pooling import Pooling
from multimodal.models.layers.stems import per_dim
from multimodal.models.layers.transformer import Transformer


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
        patch_dropout: share of the tokens left out in training (FLIP).

    Raises:
        ValueError: if the image size is not a multiple of the patch size, and for choices that do
            not exist.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        in_channels: int,
        stem: Callable[..., Stem],
        trunk: Transformer,
        positions: Positions = "learned",
        pooling: Pooling = "class",
        patch_dropout: float = 0.0,
    ) -> None:
        size = per_dim(image_size, 2, "image_size")
        super().__init__(in_channels, size, stem, trunk, positions, pooling, patch_dropout)


class VideoTransformer(GridTransformer):
    """A ViT on tubelets of clips ``[B, in_channels, num_frames, height, width]``, and on pictures.

    A picture ``[B, in_channels, height, width]`` is treated as a clip of equal frames, so that one
    tower serves both modalities, as ImageBind's does (Girdhar et al. 2023, section 3.2; tubelets:
    Arnab et al. 2021, "ViViT", section 3.2). With ``bias`` and positions of a ViT, and its kernel
    inflated (``multimodal.models.layers.stems.inflate``), a picture's features are the ViT's.

    Args:
        num_frames: frames of a clip.
        image_size: side of the square frames in pixels, or ``[height, width]``.
        in_channels: 3 for RGB.
        stem: a partial of ``PatchStem`` whose patch is ``[frames, height, width]``.
        trunk: the transformer.
        positions: ``learned`` (one per place and time), or ``sincos``.
        pooling: ``class``, ``mean`` or ``attention``.
        patch_dropout: share of the tokens left out in training (FLIP).

    Raises:
        ValueError: if the clip is not a multiple of the tubelet, and for choices that do not exist.
    """

    def __init__(
        self,
        num_frames: int,
        image_size: int | Sequence[int],
        in_channels: int,
        stem: Callable[..., Stem],
        trunk: Transformer,
        positions: Positions = "learned",
        pooling: Pooling = "class",
        patch_dropout: float = 0.0,
    ) -> None:
        size = (num_frames, *per_dim(image_size, 2, "image_size"))
        super().__init__(in_channels, size, stem, trunk, positions, pooling, patch_dropout)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encode a batch of clips or of pictures.

        Args:
            inputs: float ``[B, C, T, H, W]`` or ``[B, C, H, W]``.
            mask: None; a signal of fixed size has no padding.

        Raises:
            ValueError: if given inputs mismatched shapes, or when a mask is given.
        """
        return super().forward(self._clips(inputs), mask)

    def encode_resized(self, inputs: Tensor) -> EncoderOutput:
        """As of pictures or clips of its own size, the only one that it takes.

        Raises:
            ValueError: if given another one.
        """
        return super().encode_resized(self._clips(inputs))

    def encode_hidden(self, inputs: Tensor, hidden: Tensor, token: Tensor) -> EncoderOutput:
        """Encode clips or pictures of which some tubelets are replaced by a learned token."""
        return super().encode_hidden(self._clips(inputs), hidden, token)

    def check_inputs(self, inputs: Tensor, mask: Tensor | None) -> None:
        """Refuses what `forward` cannot take; a picture is a clip of equal frames.

        Raises:
            InputMismatchError: naming the expected and the given input.
        """
        super().check_inputs(self._clips(inputs), mask)

    def _clips(self, inputs: Tensor) -> Tensor:
        if inputs.ndim == 4:
            return inputs[:, :, None].expand(-1, -1, self.size[0], -1, -1)
        return inputs
