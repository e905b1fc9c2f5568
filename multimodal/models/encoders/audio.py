"""The audio spectrogram transformer."""

from __future__ import annotations

from collections.abc import Callable

from multimodal.models.encoders.transformer import GridTransformer, Positions, Stem
from multimodal.models.layers.pooling import Pooling
from multimodal.models.layers.transformer import Transformer


class AudioTransformer(GridTransformer):
    """A ViT on log-mel spectrograms ``[B, 1, num_mel_bins, num_frames]``.

    Source: Gong et al. 2021, "AST: Audio Spectrogram Transformer", section 2.1: patches that
    overlap, 16 x 16 with stride 10; ImageBind does the same. Where the stride does not fit, the
    last few bins or frames are in no patch.

    Args:
        num_mel_bins: rows of the spectrogram.
        num_frames: its columns.
        stem: a partial of ``PatchStem`` or ``ConvStem``.
        trunk: the transformer.
        positions: ``learned``, or ``sincos`` for fixed two-dimensional ones.
        pooling: ``class``, ``mean`` or ``attention``.
        patch_dropout: share of the tokens left out in training (FLIP).

    Raises:
        ValueError: if the stem cannot cut the spectrogram, and for choices that do not exist.
    """

    def __init__(
        self,
        num_mel_bins: int,
        num_frames: int,
        stem: Callable[..., Stem],
        trunk: Transformer,
        positions: Positions = "learned",
        pooling: Pooling = "class",
        patch_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            1, (num_mel_bins, num_frames), stem, trunk, positions, pooling, patch_dropout
        )
