"""Parts that a transformer's block may have: other norms and MLPs, and on its residual branches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.models.layers.packing import Packing

Norm = Literal["layer", "rms"]
FeedForward = Literal["plain", "swiglu"]
HIDDEN_MULTIPLE = 8  # of a gated MLP's hidden width: what tensor cores take


@dataclass(frozen=True)
class BlockChoices:
    """How a block differs from the ViT's.

    Attributes:
        norm: ``layer``, or ``rms`` for RMSNorm in place of every LayerNorm.
        mlp: ``plain``, or ``swiglu`` for a gated one of as many parameters, with no ``activation``.
        qk_norm: a norm on the queries and keys of every head, which keeps attention from saturating
            (Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters", 2.2).
        checkpointing: in training, keeps of every block only what goes in, and computes the rest
            again in the backward: memory for a third more time (Chen et al. 2016). Random numbers
            are replayed.

    Raises:
        ValueError: if given a name that does not exist.
    """

    norm: Norm = "layer"
    mlp: FeedForward = "plain"
    qk_norm: bool = False
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (("norm", self.norm, Norm), ("mlp", self.mlp, FeedForward)):
            if value not in get_args(known):
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(get_args(known))}")


def make_norm(name: Norm, width: int, eps: float) -> nn.Module:
    """A norm of the last dimension, of ``width``, with a learned scale.

    ``layer``: Ba et al. 2016, with a bias. ``rms``: Zhang and Sennrich 2019, equation 4, without
    one; it does not take the mean out.
    """
    return nn.RMSNorm(width, eps) if name == "rms" else nn.LayerNorm(width, eps)


class SwiGLU(nn.Module):
    """``fc2(silu(a) * b)`` with ``a, b = fc1(x)``: Shazeer 2020, "GLU Variants", equation 6.

    Args:
        width: W.
        hidden: hidden width of the plain MLP that it stands for. Its own is two thirds of that,
            rounded to a multiple of 8, so that both have as many parameters.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        own = max(1, round(hidden * 2 / 3 / HIDDEN_MULTIPLE)) * HIDDEN_MULTIPLE
        self.fc1 = nn.Linear(width, 2 * own)
        self.fc2 = nn.Linear(own, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., W]`` to the same shape."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        out: Tensor = self.fc2(F.silu(gate) * value)
        return out


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a sample's residual branch, and scale up the kept ones.

    Source: Huang et al. 2016, "Deep Networks with Stochastic Depth".

    Args:
        rate: probability of dropping, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path={rate}: expected a probability in [0, 1)")
        self.rate = rate

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """``[B, ...]``, or packed ``[N, W]``, to the same shape; the identity in evaluation."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        samples = x.shape[0] if packing is None else packing.batch
        kept = x.new_empty(samples, *(1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * ((kept if packing is None else packing.per_token(kept)) / keep)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al. 2021, CaiT, equation 5)."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., W]`` to the same shape."""
        return x * self.scale
