"""A small residual convolutional network: learns fast where samples are small and few."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.models.encoders.transformer import check_shape, refuse_mask
from multimodal.models.layers.stems import per_dim


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, pre-activation (He et al. 2016, "Identity Mappings").

    Args:
        in_channels: channels that come in.
        channels: channels that go out.
        stride: 2 halves the sides.
        groups: groups of the GroupNorm.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(groups, in_channels)
        self.conv_1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm_2 = nn.GroupNorm(groups, channels)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.activation = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride), nn.Conv2d(in_channels, channels, 1, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, h, w]`` to ``[B, channels, h / stride, w / stride]``."""
        out = self.conv_1(self.activation(self.norm_1(x)))
        out = self.conv_2(self.activation(self.norm_2(out)))
        return torch.add(self.shortcut(x), out)


class ConvolutionalEncoder(nn.Module):
    """A pre-activation residual network on pictures or spectrograms ``[B, C, height, width]``.

    Normalises by groups (Wu and He 2018), so that a sample's features do not depend on its batch.
    The tokens are the last feature map, row by row; the features are their mean.

    Args:
        image_size: side of the square picture in pixels, or ``[height, width]``.
        in_channels: 3 for RGB, 1 for depth, thermal and log-mel spectrograms.
        channels: channels of each stage; the first convolution and every stage after the first
            halve the sides. The last is the encoder's width.
        blocks: residual blocks of each stage; only the first may have none.
        groups: groups of the GroupNorms, a divisor of every stage's channels.

    Raises:
        ValueError: if the lists differ in length, the groups do not divide the channels, or the
            sides cannot be halved that often; for inputs mismatched shapes.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        in_channels: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        groups: int = 8,
    ) -> None:
        super().__init__()
        if not channels or len(channels) != len(blocks):
            raise ValueError(
                f"channels={list(channels)} and blocks={list(blocks)}: expected one number of "
                "each per stage"
            )
        if min(blocks) < 0 or 0 in blocks[1:]:
            raise ValueError(f"blocks={list(blocks)}: only the first stage may have no block")
        if any(count % groups for count in channels):
            raise ValueError(
                f"groups={groups} does not divide every one of channels={list(channels)}"
            )
        size = per_dim(image_size, 2, "image_size")
        if any(side % 2 ** len(channels) for side in size):
            raise ValueError(
                f"image_size={image_size} is not a multiple of {2 ** len(channels)}, "
                f"by which {len(channels)} stages divide it"
            )
        self.width = channels[-1]
        self.in_channels = in_channels
        self.size = size
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, channels[0], 3, stride=2, padding=1, bias=False)
        ]
        previous = channels[0]
        for stage, (current, count) in enumerate(zip(channels, blocks, strict=True)):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(ResidualBlock(previous, current, stride, groups))
                previous = current
        self.layers = nn.Sequential(*layers, nn.GroupNorm(groups, previous), nn.ReLU())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for layer in layers:
            if isinstance(layer, ResidualBlock):  # starts as its shortcut (Goyal et al. 2017, 5.1)
                nn.init.zeros_(layer.conv_2.weight)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encode a batch of float pictures; there is no padding, so ``mask`` must be None."""
        self.check_inputs(inputs, mask)
        # Channels last is the layout in which the convolutions are fast, on CPU and on GPU.
        features = self.layers(inputs.contiguous(memory_format=torch.channels_last))
        tokens = features.flatten(2).transpose(1, 2)
        return EncoderOutput(tokens.mean(dim=1), tokens)

    def check_inputs(self, inputs: Tensor, mask: Tensor | None) -> None:
        """Refuses what `forward` cannot take.

        Raises:
            InputMismatchError: naming the expected and the given input.
        """
        check_shape(inputs, (self.in_channels, *self.size), type(self).__name__)
        refuse_mask(mask, type(self).__name__)
