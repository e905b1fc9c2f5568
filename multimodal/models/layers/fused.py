"""A convolution and what follows it, in one pass over the maps, where a CPU's kernels have it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def convolve(
    x: Tensor, convolution: nn.Conv2d, kernel: Tensor, bias: Tensor, relu6: bool
) -> Tensor:
    """What ``convolution`` gives with other weights, and ReLU6 of it.

    Without gradients on a CPU, oneDNN's fused kernel, which `torch.compile` takes too: on a CPU a
    network of depthwise convolutions spends its time on passing over maps. What is exported,
    compiled or counted is two operations.

    Args:
        x: ``[B, C, h, w]``.
        convolution: its stride, padding (numbers, of zeros), dilation and groups.
        kernel: in the place of its weight, of the same shape.
        bias: in the place of its bias, ``[channels]``.
        relu6: whether the activation follows.
    """
    sizes = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
    if _fuses(x, kernel, bias):
        operator: Any = torch.ops.mkldnn._convolution_pointwise
        then = ("hardtanh", [0.0, 6.0]) if relu6 else ("none", [])
        fused: Tensor = operator(x, kernel, bias, *sizes, *then, "")
        return fused
    out: Tensor = convolution._conv_forward(x, kernel, bias)
    return F.relu6(out, inplace=True) if relu6 else out


def _fuses(*tensors: Tensor) -> bool:
    """Whether the fused kernel takes these, and nobody watches the operations."""
    return (
        not torch.compiler.is_compiling()
        and not (torch.is_grad_enabled() and any(each.requires_grad for each in tensors))
        and all(each.is_cpu and each.dtype == torch.float32 for each in tensors)
        and not torch.is_autocast_enabled("cpu")
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._has_mkldnn
        and torch._C._get_mkldnn_enabled()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )
