"""Fusion of pooled features: one vector per modality, no tokens. The baselines of the field."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from multimodal.models.fusion.base import (
    Fusion,
    FusionOutput,
    Stream,
    mean_of_present,
    pooled_output,
)
from multimodal.models.layers.transformer import MLP


class MeanFusion(Fusion):
    """The mean of the present modalities' projected features.

    Args:
        widths: modality -> width of its encoder.
        width: W of the result.
    """

    def fuse(self, streams: dict[str, Stream], need_attention: bool) -> FusionOutput:
        """``[B, W]``; the tokens are the projected features, one per modality."""
        features = {name: stream.features for name, stream in streams.items()}
        mean = mean_of_present(list(features.values()), [s.present for s in streams.values()])
        return FusionOutput(mean, *pooled_output(features, streams))


class ConcatFusion(Fusion):
    """The modalities' features side by side, through a hidden layer. An absent one is zero.

    Args:
        widths: modality -> width of its encoder.
        width: W of the result.
        hidden: width of the hidden layer; None: W.
    """

    def __init__(self, widths: Mapping[str, int], width: int, hidden: int | None = None) -> None:
        super().__init__(widths, width)
        self.mlp = MLP(width * len(self.modalities), hidden or width, out=width)

    def fuse(self, streams: dict[str, Stream], need_attention: bool) -> FusionOutput:
        """``[B, W]``; the tokens are the projected features, one per modality."""
        features = {name: stream.features for name, stream in streams.items()}
        nothing = torch.zeros_like(next(iter(features.values())))
        side_by_side = [features.get(name, nothing) for name in self.modalities]
        fused: Tensor = self.mlp(torch.cat(side_by_side, dim=-1))
        return FusionOutput(fused, *pooled_output(features, streams))


class GatedFusion(Fusion):
    """Gated multimodal unit: every modality is weighed, per dimension, by a gate that sees all.

    ``h = sum_m z_m * tanh(W_m x_m)`` with ``z_m = sigmoid(V_m [x_1 .. x_M])``.
    Source: Arevalo et al. 2017, "Gated Multimodal Units", section 3.1, the form for more than two
    modalities; an absent modality's gate is shut.

    Args:
        widths: modality -> width of its encoder.
        width: W of the result.
    """

    def __init__(self, widths: Mapping[str, int], width: int) -> None:
        super().__init__(widths, width)
        everything = width * len(self.modalities)
        self.gates = nn.ModuleDict({name: nn.Linear(everything, width) for name in widths})

    def fuse(self, streams: dict[str, Stream], need_attention: bool) -> FusionOutput:
        """``[B, W]``; the tokens are the gated features, one per modality."""
        features = {name: stream.features for name, stream in streams.items()}
        nothing = torch.zeros_like(next(iter(features.values())))
        everything = torch.cat([features.get(name, nothing) for name in self.modalities], dim=-1)
        gated = {}
        for name, stream in streams.items():
            open_to = torch.sigmoid(self.gates[name](everything))
            gated[name] = torch.where(
                stream.present[:, None], open_to * torch.tanh(features[name]), 0.0
            )
        total = torch.stack(list(gated.values())).sum(dim=0)
        return FusionOutput(total, *pooled_output(gated, streams))


class LowRankFusion(Fusion):
    """The full tensor product of the modalities' features, in a low-rank form.

    ``h = sum_r w_r prod_m [x_m; 1] U_m^r + b``, the product elementwise.
    Source: Liu et al. 2018, "Efficient Low-rank Multimodal Fusion", equation 8. The features are
    normalised first, or products of many would vanish or explode; an absent modality leaves the
    product.

    Args:
        widths: modality -> width of its encoder.
        width: W of the result.
        rank: number of factors r.
    """

    def __init__(self, widths: Mapping[str, int], width: int, rank: int = 4) -> None:
        super().__init__(widths, width)
        if rank < 1:
            raise ValueError(f"rank={rank}: expected at least 1")
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in widths})
        self.factors = nn.ModuleDict({name: nn.Linear(width, rank * width) for name in widths})
        for factor in self.factors.values():  # the appended 1 starts by passing the others on
            nn.init.ones_(factor.bias)  # type: ignore[arg-type]
        self.rank = rank
        self.mix = nn.Linear(rank, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.constant_(self.mix.weight, rank**-0.5)

    def fuse(self, streams: dict[str, Stream], need_attention: bool) -> FusionOutput:
        """``[B, W]``; the tokens are the projected features, one per modality."""
        features = {name: stream.features for name, stream in streams.items()}
        product: Tensor | None = None
        for name, stream in streams.items():
            factor = self.factors[name](self.norms[name](features[name]))
            factor = torch.where(stream.present[:, None], factor, 1.0)
            product = factor if product is None else product * factor
        assert product is not None
        product_BWR = product.view(product.shape[0], self.rank, self.width).transpose(1, 2)
        fused = self.mix(product_BWR)[..., 0] + self.bias
        return FusionOutput(fused, *pooled_output(features, streams))
