"""The pre-norm transformer that every sequence encoder is built on.

Sizes in comments: B batch, T queries, S keys, H heads, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from multimodal.core.settings import flattened
from multimodal.models.layers.activations import Activation, make_activation
from multimodal.models.layers.attending import attend, check_heads
from multimodal.models.layers.choices import (
    BlockChoices,
    DropPath,
    LayerScale,
    SwiGLU,
    make_norm,
)
from multimodal.models.layers.packing import Packing


def init_linear(linear: nn.Linear, std: float) -> None:
    """Normal weights of the given standard deviation, zero bias."""
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values.

    Args:
        width: W.
        num_heads: a divisor of W.
        causal: a token sees itself and those before it.
        bias_kv: append one learned key and value to those of the sequence (seen by every token),
            as ``torch.nn.MultiheadAttention(add_bias_kv=True)`` does and ImageBind uses.
        qk_norm: called with a head's width; makes the norms of queries and keys. None: none.

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        causal: bool = False,
        bias_kv: bool = False,
        qk_norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_heads(width, num_heads)
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.bias_k = nn.Parameter(torch.randn(width) * width**-0.5) if bias_kv else None
        self.bias_v = nn.Parameter(torch.randn(width) * width**-0.5) if bias_kv else None
        self.norm_q, self.norm_k = (
            nn.Identity() if qk_norm is None else qk_norm(width // num_heads) for _ in range(2)
        )

    def project(self, x: Tensor, packing: Packing | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, T, W]`` of ``x [B, T, W]``, or packed ``[N, W]``."""
        qkv = self.qkv(x)
        q, k, v = (qkv if packing is None else packing.unpack(qkv)).chunk(3, dim=-1)
        if not isinstance(self.norm_q, nn.Identity):  # of every head by itself
            heads = (self.num_heads, -1)
            q = self.norm_q(q.unflatten(-1, heads)).flatten(-2).to(v.dtype)
            k = self.norm_k(k.unflatten(-1, heads)).flatten(-2).to(v.dtype)
        return q, k, v

    def forward(
        self, x: Tensor, mask: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        """Mix the tokens of each sequence.

        Args:
            x: ``[B, T, W]``; packed, ``[N, W]``.
            mask: bool ``[B, T]``, True where a token is real; the others are seen by none.
            packing: where the tokens of a packed ``x`` belong.

        Returns:
            As ``x``.
        """
        q, k, v = self.project(x, packing)
        visible = None if mask is None else mask[:, None, None, :]  # [B, 1, 1, S]
        causal = self.causal
        if causal and (mask is not None or self.bias_k is not None):  # then spell the triangle out
            triangle = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=x.device).tril()
            visible = triangle[None, None] if visible is None else triangle & visible
            causal = False
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.to(k.dtype).expand(k.shape[0], 1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.to(v.dtype).expand(v.shape[0], 1, -1)], dim=1)
            visible = None if visible is None else F.pad(visible, (0, 1), value=True)
        mixed = attend(q, k, v, self.num_heads, visible, causal)
        out: Tensor = self.out(mixed if packing is None else packing.pack(mixed))
        return out


class CrossAttention(nn.Module):
    """Multi-head attention of queries to another sequence.

    Args:
        width: W of the queries and of the result.
        num_heads: a divisor of W.
        context_width: width C of the other sequence; None: W.

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(self, width: int, num_heads: int, context_width: int | None = None) -> None:
        super().__init__()
        check_heads(width, num_heads)
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(context_width or width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read from ``context``.

        Args:
            x: queries ``[B, T, W]``.
            context: ``[B, S, C]``.
            mask: bool ``[B, S]``, True where a context token is real.

        Returns:
            ``[B, T, W]``.
        """
        k, v = self.kv(context).chunk(2, dim=-1)
        visible = None if mask is None else mask[:, None, None, :]
        out: Tensor = self.out(attend(self.q(x), k, v, self.num_heads, visible))
        return out


class MLP(nn.Sequential):
    """Linear, activation, linear: the feed-forward half of a block."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: Activation = "gelu",
        out: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=bias)
        self.activation = make_activation(activation)
        self.fc2 = nn.Linear(hidden, out or width, bias=bias)


class Block(nn.Module):
    """Pre-norm transformer block: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        activation: Activation = "gelu",
        causal: bool = False,
        bias_kv: bool = False,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-5,
        choices: BlockChoices | None = None,
    ) -> None:
        super().__init__()
        choices = choices or BlockChoices()
        norm = partial(make_norm, choices.norm, eps=norm_eps)

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

        self.norm_1 = norm(width)
        head_norm = norm if choices.qk_norm else None
        self.attention = Attention(width, num_heads, causal, bias_kv, head_norm)
        self.scale_1 = scale()
        self.norm_2 = norm(width)
        gated, hidden = choices.mlp == "swiglu", round(width * mlp_ratio)
        self.mlp = SwiGLU(width, hidden) if gated else MLP(width, hidden, activation)
        self.scale_2 = scale()
        self.drop_path = DropPath(drop_path)

    def init(self, num_layers: int) -> None:
        """Start as one of ``num_layers`` blocks; see ``Transformer``."""
        width = self.attention.out.in_features
        init_linear(self.attention.qkv, width**-0.5)
        init_linear(self.attention.out, (2 * width * num_layers) ** -0.5)
        init_linear(self.mlp.fc1, (2 * width) ** -0.5)
        init_linear(self.mlp.fc2, (2 * width * num_layers) ** -0.5)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        """``[B, T, W]`` and bool ``[B, T]`` (True = real) to ``[B, T, W]``; packed, ``[N, W]``."""
        mixed = self.scale_1(self.attention(self.norm_1(x), mask, packing))
        y: Tensor = x + self.drop_path(mixed, packing)
        z: Tensor = y + self.drop_path(self.scale_2(self.mlp(self.norm_2(y))), packing)
        return z


class Transformer(nn.Module):
    """Blocks between an optional LayerNorm and a final one.

    The defaults are the ViT's (Dosovitskiy et al. 2021). Weights start as in GPT-2 and CLIP's text
    tower (Radford et al. 2021, code of the release): normal with standard deviation ``W^-0.5``
    into attention, ``(2W)^-0.5`` into the MLP, and both outputs scaled down by ``(2 L)^-0.5``, so
    that the residual stream keeps its size at any width and depth; biases start at zero.

    Args:
        width: W.
        num_layers: number of blocks L; 0: tokens do not see each other.
        num_heads: heads per block, a divisor of W.
        mlp_ratio: hidden width of the MLP over W.
        activation: ``gelu`` (exact), ``gelu_tanh`` or ``quick_gelu`` (OpenAI's CLIP).
        causal: a token sees itself and those before it.
        pre_norm: a LayerNorm before the first block too (CLIP's vision tower).
        bias_kv: one learned key and value appended in every attention (ImageBind).
        drop_path: stochastic depth of the last block, rising linearly from 0 at the first.
        layer_scale: initial value of a learned factor on every residual branch; None: no factor.
        norm_eps: epsilon of every norm in here.
        choices: other norms and MLPs, and checkpointing.

    The fields of the last are keywords of the constructor (`flattened`).

    Raises:
        ValueError: if the heads do not divide the width, a value is out of its range, or a choice
            does not exist.
    """

    @flattened(choices=BlockChoices)
    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        activation: Activation = "gelu",
        causal: bool = False,
        pre_norm: bool = False,
        bias_kv: bool = False,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-5,
        *,
        choices: BlockChoices,
    ) -> None:
        super().__init__()
        check_heads(width, num_heads)
        if num_layers < 0:
            raise ValueError(f"num_layers={num_layers}: expected at least 0")
        self.width = width
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.activation: Activation = activation
        self.causal = causal
        self.norm_eps = norm_eps
        self.checkpointing = choices.checkpointing
        self.pre_norm = make_norm(choices.norm, width, norm_eps) if pre_norm else nn.Identity()
        self.blocks = nn.ModuleList()
        for index in range(num_layers):
            block = Block(
                width,
                num_heads,
                mlp_ratio=mlp_ratio,
                activation=activation,
                causal=causal,
                bias_kv=bias_kv,
                drop_path=drop_path * index / max(num_layers - 1, 1),
                layer_scale=layer_scale,
                norm_eps=norm_eps,
                choices=choices,
            )
            block.init(num_layers)
            self.blocks.append(block)
        self.norm = make_norm(choices.norm, width, norm_eps)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        """Transform a sequence.

        Args:
            x: ``[B, T, W]``; packed, ``[N, W]``.
            mask: bool ``[B, T]``, True where a token is real; None: all are.
            packing: where the tokens of a packed ``x`` belong.

        Returns:
            As ``x``, after the final LayerNorm.
        """
        x = self.pre_norm(x)
        recomputed = self.checkpointing and self.training and torch.is_grad_enabled()
        given = (mask,) if packing is None else (mask, packing)
        for block in self.blocks:
            x = (
                checkpoint(block, x, *given, use_reentrant=False)
                if recomputed
                else block(x, *given)
            )
        out: Tensor = self.norm(x)
        return out
