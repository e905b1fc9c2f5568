"""Blocks that attend to another sequence, and attention weights to look at.

Sizes in comments: B batch, T queries, S keys, H heads, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multimodal.models.layers.transformer import MLP, Attention, CrossAttention, init_linear


def attention_weights(q: Tensor, k: Tensor, num_heads: int, mask: Tensor | None) -> Tensor:
    """The weights that ``layers.transformer.attend`` uses and does not return.

    Args:
        q: queries ``[B, T, W]``.
        k: keys ``[B, S, W]``.
        num_heads: number of heads H, a divisor of W.
        mask: bool ``[B, S]``, True where a key is real; None: all are.

    Returns:
        ``[B, H, T, S]`` float32; a row sums to 1 over the real keys, or is 0 without any.
    """
    heads = (num_heads, q.shape[2] // num_heads)
    q, k = (x.float().view(*x.shape[:2], *heads).transpose(1, 2) for x in (q, k))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    visible = scores.new_ones((), dtype=torch.bool) if mask is None else mask[:, None, None, :]
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    return torch.where(visible, weights, 0.0)


def self_attention_weights(attention: Attention, x: Tensor, mask: Tensor | None) -> Tensor:
    """``[B, H, T, T]`` float32, the weights of a self-attention (not causal, no bias_kv) on x."""
    q, k, _ = attention.project(x)
    return attention_weights(q, k, attention.num_heads, mask)


class CrossBlock(nn.Module):
    """Attention to another sequence and an MLP, each after a LayerNorm and with a residual.

    Args:
        width: W of both sequences.
        num_heads: a divisor of W.
        mlp_ratio: hidden width of the MLP over W.
        num_layers: of the stack that this block is one of; scales the outputs' start down, as
            ``Transformer`` does.
    """

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float = 4.0, num_layers: int = 1
    ) -> None:
        super().__init__()
        self.norm_q = nn.LayerNorm(width)
        self.norm_kv = nn.LayerNorm(width)
        self.attention = CrossAttention(width, num_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, round(width * mlp_ratio))
        init_linear(self.attention.q, width**-0.5)
        init_linear(self.attention.kv, width**-0.5)
        init_linear(self.attention.out, (2 * width * num_layers) ** -0.5)
        init_linear(self.mlp.fc1, (2 * width) ** -0.5)
        init_linear(self.mlp.fc2, (2 * width * num_layers) ** -0.5)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, T, W]`` reads ``[B, S, W]``, of which ``mask [B, S]`` is real, to ``[B, T, W]``."""
        y: Tensor = x + self.attention(self.norm_q(x), self.norm_kv(context), mask)
        z: Tensor = y + self.mlp(self.norm_mlp(y))
        return z

    def weights(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, H, T, S]`` float32, what ``forward`` attends to."""
        q = self.attention.q(self.norm_q(x))
        k = self.attention.kv(self.norm_kv(context)).chunk(2, dim=-1)[0]
        return attention_weights(q, k, self.attention.num_heads, mask)
