"""Attention itself: softmax of products, by torch's kernels.

Sizes: B batch, T queries, S keys, H heads, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def check_heads(width: int, num_heads: int) -> None:
    """Refuse a width that the heads do not divide.

    Raises:
        ValueError: if it is not divisible; the message names both numbers.
    """
    if width < 1 or num_heads < 1 or width % num_heads:
        raise ValueError(
            f"width={width} cannot be divided into num_heads={num_heads} equal heads: "
            "choose a width that is a multiple of num_heads"
        )


def attend(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, mask: Tensor | None, causal: bool = False
) -> Tensor:
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2).

    Args:
        q: queries ``[B, T, W]``.
        k: keys ``[B, S, W]``.
        v: values ``[B, S, W]``.
        num_heads: number of heads H, a divisor of W.
        mask: bool, broadcastable to ``[B, H, T, S]``, True where a key may be seen; None: all.
            A query that sees no key gets zeros.
        causal: query t sees keys 0..t; only with ``mask=None``.

    Returns:
        ``[B, T, W]``, the heads side by side.
    """
    heads = (num_heads, q.shape[2] // num_heads)  # no -1, which is ambiguous without rows
    q, k, v = (x.view(*x.shape[:2], *heads).transpose(1, 2) for x in (q, k, v))
    dtype = q.dtype
    if q.device.type == "cpu" and dtype == torch.bfloat16:
        # The CPU's kernel for bfloat16 takes thrice the time of that for float32, in the backward.
        with torch.autocast("cpu", enabled=False):
            q, k, v = (x.float() for x in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return out.transpose(1, 2).flatten(2).to(dtype)
