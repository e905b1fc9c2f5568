"""Poolers: a sequence to one vector, ``(tokens [B, T, W], mask [B, T] or None) -> [B, W]``.

The mask is True where a token is real, and every sample has at least one real token.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from multimodal.models.layers.transformer import MLP, CrossAttention, Transformer, init_linear

Pooling = Literal["class", "mean", "last", "attention"]


class FirstPool(nn.Module):
    """The first token: a class token."""

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, T, W]`` to ``[B, W]``."""
        return tokens[:, 0]


class LastPool(nn.Module):
    """The last real token."""

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, T, W]`` to ``[B, W]``."""
        if mask is None:
            return tokens[:, -1]
        last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(dim=1)
        return tokens[torch.arange(tokens.shape[0], device=tokens.device), last]


class MeanPool(nn.Module):
    """The mean of the real tokens."""

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, T, W]`` to ``[B, W]``."""
        if mask is None:
            return tokens.mean(dim=1)
        total = tokens.masked_fill(~mask[..., None], 0.0).sum(dim=1)
        return total / mask.sum(dim=1, keepdim=True)


class AttentionPool(nn.Module):
    """A learned query attends to the tokens, then a residual MLP: the "MAP head" that SigLIP uses.

    Source: Zhai et al. 2022, "Scaling Vision Transformers", section 3.2 and appendix; Lee et al.
    2019, "Set Transformer", section 3.2. Sizes and epsilon are those of the trunk.
    """

    def __init__(self, trunk: Transformer) -> None:
        super().__init__()
        width = trunk.width
        self.latent = nn.Parameter(torch.empty(width))
        self.attention = CrossAttention(width, trunk.num_heads)
        self.norm = nn.LayerNorm(width, trunk.norm_eps)
        self.mlp = MLP(width, round(width * trunk.mlp_ratio), trunk.activation)
        nn.init.trunc_normal_(self.latent, std=width**-0.5)
        for linear in (self.attention.q, self.attention.kv, self.attention.out):
            init_linear(linear, width**-0.5)
        init_linear(self.mlp.fc1, (2 * width) ** -0.5)
        init_linear(self.mlp.fc2, (2 * width) ** -0.5)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, T, W]`` to ``[B, W]``."""
        query = self.latent.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        x = self.attention(query, tokens, mask)
        x = x + self.mlp(self.norm(x))
        pooled: Tensor = x[:, 0]
        return pooled


def make_pooler(name: Pooling, trunk: Transformer) -> nn.Module:
    """The pooler of a name, sized for ``trunk``.

    Raises:
        ValueError: if given an unknown name.
    """
    if name not in get_args(Pooling):
        raise ValueError(f"pooling={name!r}: expected one of {', '.join(get_args(Pooling))}")
    if name == "attention":
        return AttentionPool(trunk)
    return {"class": FirstPool, "mean": MeanPool, "last": LastPool}[name]()
