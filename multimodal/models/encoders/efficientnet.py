"""EfficientNet-Lite: a small image network whose ImageNet weights cost a CPU little to run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.core.batch import EncoderOutput
from multimodal.models.layers.fused import convolve

EPS = 1e-3  # of the batch normalisations


class FixedBatchNorm(nn.Module):
    """Batch normalisation of pictures by stored statistics, in training too.

    So a sample's features do not depend on its batch, and training leaves the statistics as the
    weights were trained with; scale and shift learn where they are not frozen.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, h, w]`` to the same shape."""
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, eps=EPS)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The same as a factor and a summand ``[channels]``."""
        precise = torch.promote_types(self.running_var.dtype, torch.float32)
        scale = self.weight.to(precise) * (self.running_var.to(precise) + EPS).rsqrt()
        return scale, self.bias - self.running_mean * scale


class NormalisedConvolution(nn.Sequential):
    """A convolution without bias, padded evenly on all sides, its normalisation, and ReLU6 or none.

    The normalisation's factor goes into the kernel, which is much smaller than the maps: on a CPU
    the network's time is mostly that of passing over maps. What is exported stays separate
    operations, which runtimes merge on their own.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        relu6: bool = True,
    ) -> None:
        padding = kernel // 2
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False),
            FixedBatchNorm(channels),
        )
        self.relu6 = relu6

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, h, w]`` to ``[B, channels, h / stride, w / stride]``."""
        convolution, norm = self[0], self[1]
        # Something else may stand in the place of one of them, such as an adapter.
        plain = type(convolution) is nn.Conv2d and isinstance(norm, FixedBatchNorm)
        if not plain or torch.compiler.is_exporting():
            out: Tensor = norm(convolution(x))
            return F.relu6(out, inplace=True) if self.relu6 else out
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, FixedBatchNorm)
        scale, shift = norm.scale_and_shift()
        kernel = (convolution.weight * scale.view(-1, 1, 1, 1)).to(convolution.weight.dtype)
        return convolve(x, convolution, kernel, shift.to(kernel.dtype), self.relu6)


class MBConv(nn.Module):
    """Inverted bottleneck: widen, convolve each channel, narrow (Sandler et al. 2018, section 3.4).

    The Lite networks have no squeeze-and-excitation, and ReLU6 for Swish.

    Args:
        in_channels: channels that come in.
        channels: channels that go out.
        kernel: side of the depthwise convolution.
        stride: its stride.
        expansion: how many times wider the inside is; 1: it is not widened.
    """

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        inside = in_channels * expansion
        self.expand = NormalisedConvolution(in_channels, inside, 1) if expansion > 1 else None
        self.depthwise = NormalisedConvolution(inside, inside, kernel, stride, groups=inside)
        self.project = NormalisedConvolution(inside, channels, 1, relu6=False)
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, h, w]`` to ``[B, channels, h / stride, w / stride]``."""
        inside = x if self.expand is None else self.expand(x)
        out: Tensor = self.project(self.depthwise(inside))
        return x + out if self.residual else out


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite (Tan and Le 2019, table 1; the Lite variant of its authors' release).

    Pictures of any size ``[B, C, height, width]``, their values in [-1, 1]: (x - 127) / 128 of
    bytes. The tokens are the last feature map, row by row; the features are their mean. The
    defaults are Lite0's, 3.4 million parameters. Batch normalisation uses the stored statistics
    (`FixedBatchNorm`): the network is meant for trained weights.

    Args:
        in_channels: 3 for RGB; 1 for depth and thermal.
        stem_channels: channels of the first convolution.
        channels: channels of each stage.
        blocks: blocks of each stage.
        kernels: side of each stage's depthwise convolutions.
        strides: stride of each stage's first block.
        expansions: expansion of each stage's blocks.
        top_channels: channels of the last convolution.
        taps: numbers of blocks whose outputs stand beside the last map in the tokens, averaged over
            its grid: what a deep network has forgotten of a drawing's colours and textures.
        first_blocks: how many blocks there are, from the first on, of those that the lists make; a
            student that inherits them from the trained network (TinyCLIP, Wu et al. 2023,
            arXiv:2309.12314). The last convolution is left out too. None: all of it.

    Attributes:
        width: channels of the tokens and the features.

    Raises:
        ValueError: if the lists differ in length, or a stage has no block, or there are not as many
            as ``first_blocks``; for inputs of other channels.
    """

    def __init__(
        self,
        in_channels: int = 3,
        stem_channels: int = 32,
        channels: Sequence[int] = (16, 24, 40, 80, 112, 192, 320),
        blocks: Sequence[int] = (1, 2, 2, 3, 3, 4, 1),
        kernels: Sequence[int] = (3, 3, 5, 3, 5, 5, 3),
        strides: Sequence[int] = (1, 2, 2, 2, 1, 2, 1),
        expansions: Sequence[int] = (1, 6, 6, 6, 6, 6, 6),
        top_channels: int = 1280,
        taps: Sequence[int] = (),
        first_blocks: int | None = None,
    ) -> None:
        super().__init__()
        lists = {"blocks": blocks, "kernels": kernels, "strides": strides, "expansions": expansions}
        for name, values in lists.items():
            if len(values) != len(channels) or min(values, default=0) < 1:
                raise ValueError(
                    f"{name}={list(values)}: expected a number of at least 1 for each of the "
                    f"{len(channels)} stages of channels={list(channels)}"
                )
        self.in_channels = in_channels
        self.stem = NormalisedConvolution(in_channels, stem_channels, 3, stride=2)
        self.blocks = nn.ModuleList()
        previous = stem_channels
        for stage, count in enumerate(blocks):
            for index in range(count):
                stride = strides[stage] if index == 0 else 1
                block = MBConv(previous, channels[stage], kernels[stage], stride, expansions[stage])
                self.blocks.append(block)
                previous = channels[stage]
        widths = [ch for ch, count in zip(channels, blocks, strict=True) for _ in range(count)]
        self.top: nn.Module | None = None
        if first_blocks is None:
            self.top = NormalisedConvolution(previous, top_channels, 1)
        elif not 1 <= first_blocks <= len(widths):
            raise ValueError(f"first_blocks={first_blocks}: expected 1 to {len(widths)}, or null")
        else:
            widths = widths[:first_blocks]
            self.blocks, top_channels = self.blocks[:first_blocks], widths[-1]
        if not all(0 <= tap < len(widths) for tap in taps) or len(set(taps)) < len(taps):
            raise ValueError(f"taps={list(taps)}: expected numbers of the {len(widths)} blocks")
        self.taps = tuple(taps)
        self.width = top_channels + sum(widths[tap] for tap in taps)

    def layers(self) -> nn.ModuleList:
        """The blocks, for freezing, adapters and layer-wise learning rates."""
        return self.blocks

    def after_layers(self) -> list[nn.Parameter]:
        """The last convolution and its normalisation, where there is one."""
        return [] if self.top is None else list(self.top.parameters())

    def leaves_out(self, key: str) -> bool:
        """Whether a tensor of the whole network has no place here because of ``first_blocks``."""
        if self.top is not None:
            return False
        kind, place = key.split(".")[:2]
        return kind == "top" or (kind == "blocks" and int(place) >= len(self.blocks))

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encode a batch.

        Args:
            inputs: float ``[B, in_channels, height, width]``.
            mask: None; a picture has no padding.

        Raises:
            ValueError: if given inputs of other dimensions or channels, or a mask.
        """
        if inputs.ndim != 4 or inputs.shape[1] != self.in_channels:
            raise ValueError(
                f"EfficientNetLite expects inputs [B, {self.in_channels}, height, width], got "
                f"{list(inputs.shape)}"
            )
        if mask is not None:
            raise ValueError("EfficientNetLite takes no mask: a picture has no padding")
        # The layout that depthwise convolutions are fastest in, on a CPU as on a GPU.
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        # Of one channel both layouts are the same, and the stem takes the other.
        x = self.stem(inputs).contiguous(memory_format=torch.channels_last)
        tapped = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.taps:
                tapped.append(x)
        top = x if self.top is None else self.top(x)
        grid = (top.shape[2], top.shape[3])
        maps = [top, *(F.adaptive_avg_pool2d(each, grid) for each in tapped)]
        tokens = torch.cat(maps, dim=1).flatten(2).transpose(1, 2)
        return EncoderOutput(tokens.mean(dim=1), tokens, None)
