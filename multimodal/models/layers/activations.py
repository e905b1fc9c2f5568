"""The activations of a transformer's MLP, by name."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``, the approximation of GELU that OpenAI's CLIP was trained with.

    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise, any shape."""
        return x * torch.sigmoid(1.702 * x)


def make_activation(name: Activation) -> nn.Module:
    """The module of an activation's name.

    Raises:
        ValueError: if given a name other than ``gelu`` (exact), ``gelu_tanh`` (its approximation by
            a hyperbolic tangent, in released SigLIP weights) and ``quick_gelu``.
    """
    if name not in get_args(Activation):
        raise ValueError(f"activation={name!r}: expected one of {', '.join(get_args(Activation))}")
    if name == "quick_gelu":
        return QuickGELU()
    return nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")
