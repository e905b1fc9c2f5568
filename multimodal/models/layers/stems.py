"""Stems: a signal on a regular grid (picture, spectrogram, series) to a sequence of tokens.

A stem is called by its encoder as ``stem(in_channels=..., width=..., dims=...)``, maps
``[B, C, *size]`` to ``[B, N, W]``, and says with ``grid(size)`` how the N tokens are laid out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def per_dim(value: int | Sequence[int], dims: int, name: str) -> tuple[int, ...]:
    """One positive integer per dimension; a single one applies to all.

    Raises:
        ValueError: if there are more or fewer than ``dims``, or one is not positive.
    """
    sizes = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(sizes) != dims or any(size < 1 for size in sizes):
        raise ValueError(f"{name}={value}: expected one positive integer or {dims} of them")
    return sizes


class PatchStem(nn.Module):
    """Linear projection of patches: the ViT's stem, and with a stride the AST's overlapping one.

    Sources: Dosovitskiy et al. 2021 (ViT), section 3.1; Gong et al. 2021 (AST), section 2.1.

    Args:
        in_channels: C.
        width: W.
        dims: 1 for series, 2 for pictures, 3 for clips.
        patch_size: side of a patch, or one per dimension.
        stride: step from patch to patch, or one per dimension; None: the patch size.
        bias: whether the projection has a bias.
        norm: a LayerNorm on the tokens (ImageBind's audio, depth, thermal and IMU stems).
        norm_eps: its epsilon.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        dims: int,
        patch_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        bias: bool = True,
        norm: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.patch_size = per_dim(patch_size, dims, "patch_size")
        self.stride = self.patch_size if stride is None else per_dim(stride, dims, "stride")
        self.projection = CONVOLUTIONS[dims](
            in_channels, width, self.patch_size, self.stride, bias=bias
        )
        self.norm = nn.LayerNorm(width, norm_eps) if norm else nn.Identity()
        # LeCun's normal, as the ViT's and CLIP's patch projections start.
        nn.init.normal_(
            self.projection.weight, std=(in_channels * math.prod(self.patch_size)) ** -0.5
        )
        if self.projection.bias is not None:
            nn.init.zeros_(self.projection.bias)

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Tokens per dimension for an input of ``size``.

        Raises:
            ValueError: if an input is smaller than a patch, or when patches that neither overlap
                nor leave gaps do not cover it exactly.
        """
        for side, patch, stride in zip(size, self.patch_size, self.stride, strict=True):
            if side < patch:
                raise ValueError(
                    f"input size {list(size)} is smaller than patch_size={list(self.patch_size)}"
                )
            if stride == patch and side % patch:
                raise ValueError(
                    f"input size {list(size)} is not a multiple of "
                    f"patch_size={list(self.patch_size)}"
                )
        return tuple(
            (side - patch) // stride + 1
            for side, patch, stride in zip(size, self.patch_size, self.stride, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *size]`` to ``[B, N, W]``."""
        if self.stride == self.patch_size:
            return self.project(self._patches(x))
        normed: Tensor = self.norm(self.projection(x).flatten(2).transpose(1, 2))
        return normed

    def project(self, patches: Tensor) -> Tensor:
        """``[..., C * patch]``, a patch's numbers by channel first, to ``[..., W]``."""
        tokens: Tensor = F.linear(patches, self.projection.weight.flatten(1), self.bias)
        normed: Tensor = self.norm(tokens)
        return normed

    @property
    def bias(self) -> Tensor | None:
        """``[W]``, or None."""
        bias: Tensor | None = self.projection.bias
        return bias

    def _patches(self, x: Tensor) -> Tensor:
        """``[B, N, C * patch]``: one matrix product of them is faster than the convolution."""
        batch, channels, *sides = x.shape
        dims = range(len(sides))
        cut = [n for s, p in zip(sides, self.patch_size, strict=True) for n in (s // p, p)]
        places, within = [2 + 2 * d for d in dims], [3 + 2 * d for d in dims]
        patches = x.reshape(batch, channels, *cut).permute(0, *places, 1, *within)
        return patches.flatten(1 + len(sides)).flatten(1, len(sides))


class ConvStem(nn.Module):
    """3x3 convolutions of stride 2, then a 1x1 to the width: trains faster than a patch stem.

    Source: Xiao et al. 2021, "Early Convolutions Help Transformers See Better", section 4. Theirs
    has batch normalisation; here GroupNorm with one group keeps samples independent of their
    batch, which encoding a batch in pieces needs.

    Args:
        in_channels: C.
        width: W.
        dims: 1 for series, 2 for pictures.
        channels: output channels of every stride-2 convolution; k of them shrink a side by 2^k.
    """

    def __init__(self, in_channels: int, width: int, dims: int, channels: Sequence[int]) -> None:
        super().__init__()
        if not channels:
            raise ValueError(
                "channels=[]: expected the output channels of at least one convolution"
            )
        convolution = CONVOLUTIONS[dims]
        layers: list[nn.Module] = []
        previous = in_channels
        for current in channels:
            layers += [
                convolution(previous, current, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(1, current),
                nn.ReLU(),
            ]
            previous = current
        self.layers = nn.Sequential(*layers, convolution(previous, width, 1))
        self.factor = 2 ** len(channels)

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Tokens per dimension for an input of ``size``.

        Raises:
            ValueError: if a side is not a multiple of 2 to the number of convolutions.
        """
        if any(side % self.factor for side in size):
            raise ValueError(
                f"input size {list(size)} is not a multiple of {self.factor}, "
                f"by which the {len(self.layers) // 3} convolutions of stride 2 divide it"
            )
        return tuple(side // self.factor for side in size)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *size]`` to ``[B, N, W]``."""
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        tokens: Tensor = self.layers(x).flatten(2).transpose(1, 2)
        return tokens


def inflate(kernel: Tensor, frames: int) -> Tensor:
    """A kernel for pictures as one for clips: repeated over time and divided by its length.

    A clip of equal frames then gives what the picture gave (Carreira and Zisserman 2017, "Quo
    Vadis, Action Recognition?", section 2.4).

    Args:
        kernel: ``[W, C, height, width]``.
        frames: length of the kernel in time.

    Returns:
        ``[W, C, frames, height, width]``.
    """
    return kernel[:, :, None].repeat(1, 1, frames, 1, 1) / frames
