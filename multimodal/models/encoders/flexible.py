"""A vision transformer on pictures of any size and aspect."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from multimodal.core.batch import EncoderOutput
from multimodal.core.errors import InputMismatchError
from multimodal.models.encoders.transformer import Positions, TransformerEncoder, check_mask
from multimodal.models.layers.pooling import Pooling
from multimodal.models.layers.stems import PatchStem, per_dim
from multimodal.models.layers.transformer import Transformer

PLACE = 2  # numbers before the pixels of a patch: where it is in its picture


class FlexibleVisionTransformer(TransformerEncoder):
    """ViT on patches ``[B, T, 2 + C * height * width]`` of pictures at their own sizes and aspects.

    Before its pixels, by channel, row and column, a patch has the place of its middle as shares of
    the picture's height and width, in (0, 1). The position table is of a grid, and is read at that
    place, between its rows bilinearly. Padding is masked, or not computed at all (``packed``).

    Weights have the names and shapes of ``VisionTransformer``, and on a picture of its size their
    features are equal. Sources: Dehghani et al. 2023, "Patch n' Pack: NaViT"; Tschannen et al.
    2025, "SigLIP 2", section 2.4.2 (NaFlex), for places as shares and one table.

    Args:
        grid: rows and columns of the position table, as ``[14, 14]``, or one number for both.
        in_channels: C.
        stem: a partial of ``PatchStem`` without a stride.
        trunk: the transformer.
        positions: ``learned``, or ``sincos`` for fixed two-dimensional ones.
        pooling: ``class``, ``mean`` or ``attention``.
        patch_dropout: share of every picture's tokens left out in training (FLIP).
        packed: computes no padding (but in attention); the result is the same up to rounding.

    Raises:
        ValueError: if the stem's patches overlap, and for choices that do not exist.
    """

    def __init__(
        self,
        grid: int | Sequence[int],
        in_channels: int,
        stem: Callable[..., PatchStem],
        trunk: Transformer,
        positions: Positions = "learned",
        pooling: Pooling = "class",
        patch_dropout: float = 0.0,
        packed: bool = True,
    ) -> None:
        if pooling == "last":
            raise ValueError("pooling='last': a picture has none; use class, mean or attention")
        sides = per_dim(grid, 2, "grid")
        super().__init__(trunk, sides, positions, pooling, patch_dropout, packed)
        self.stem = stem(in_channels=in_channels, width=trunk.width, dims=2)
        if not isinstance(self.stem, PatchStem) or self.stem.stride != self.stem.patch_size:
            raise ValueError(
                "a flexible ViT takes patches that do not overlap: PatchStem, no stride"
            )
        self.in_channels = in_channels

    @property
    def patch_features(self) -> int:
        """Numbers of a patch, with its place: the last side of the inputs."""
        height, width = self.stem.patch_size
        return PLACE + self.in_channels * height * width

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encode a batch of pictures.

        Args:
            inputs: float ``[B, T, 2 + C * height * width]``, padded behind.
            mask: bool ``[B, T]``, True where a patch is real; None: all are.

        Raises:
            InputMismatchError: if given inputs or a mask of other shapes or types.
        """
        self.check_inputs(inputs, mask)
        places, pixels = inputs[..., :PLACE], inputs[..., PLACE:]
        return self.encode_tokens(self.stem.project(pixels), mask, self.positions_at(places))

    def positions_at(self, places: Tensor) -> Tensor:
        """The table at ``places``, ``[B, T, 2]`` in (0, 1), row before column: ``[B, T, W]``."""
        extra = 0 if self.class_token is None else 1
        table = self.positions[extra:].view(1, *self.grid, self.width).permute(0, 3, 1, 2)
        corners = places.flip(-1).float() * 2 - 1  # x before y, from -1 to 1
        read = F.grid_sample(
            table.float(),
            corners.view(1, 1, -1, PLACE),
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        return read[0, :, 0].T.view(*places.shape[:2], self.width).to(table.dtype)

    def check_inputs(self, inputs: Tensor, mask: Tensor | None) -> None:
        """Refuses what `forward` cannot take.

        Raises:
            InputMismatchError: naming the expected and the given input.
        """
        wanted = self.patch_features
        if inputs.ndim != 3 or inputs.shape[2] != wanted or not inputs.is_floating_point():
            raise InputMismatchError(
                f"FlexibleVisionTransformer expects patches [B, T, {wanted}], "
                f"got {inputs.dtype} {list(inputs.shape)}"
            )
        check_mask(mask, inputs.shape[:2])
