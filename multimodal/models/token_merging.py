"""Token merging: alike tokens become one from block to block, in a trained transformer.

Source: Bolya et al. 2023, "Token Merging: Your ViT But Faster" (arXiv:2210.09461), section 3:
bipartite soft matching by keys, weighted by size, and proportional attention. Nothing is trained.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.models.encoders.transformer import GridTransformer
from multimodal.models.layers.attending import attend
from multimodal.models.layers.transformer import Attention, Transformer
from multimodal.models.towers import EmbeddingModel


class Merged(NamedTuple):
    """Tokens on their way.

    Attributes:
        tokens: ``[B, T, W]``.
        sizes: ``[B, T]``, how many of the first ones each stands for.
        places: ``[B, N]`` int64, where each of the N first ones is now.
    """

    tokens: Tensor
    sizes: Tensor
    places: Tensor


class TokenMerging(nn.Module):
    """A transformer in the place of its own, with fewer tokens from block to block.

    At the end each first token gets what it was merged into, so that poolers see as many tokens as
    before, and a mean counts each as often as it stands for others.

    Args:
        trunk: trained, not causal.
        per_block: tokens that each block merges into others, at least 1; never more than half.
        keep_first: never merges the first token, a class token.

    Raises:
        ValueError: if the trunk is causal, or ``per_block`` is below 1.
    """

    def __init__(self, trunk: Transformer, per_block: int, keep_first: bool) -> None:
        super().__init__()
        if trunk.causal or per_block < 1:
            raise ValueError("token merging needs a trunk that is not causal, and per_block from 1")
        self.trunk, self.per_block, self.keep_first = trunk, per_block, keep_first
        self.width, self.num_heads, self.causal = trunk.width, trunk.num_heads, trunk.causal

    @property
    def blocks(self) -> nn.ModuleList:
        """Of the trunk."""
        return self.trunk.blocks

    @property
    def norm(self) -> nn.Module:
        """The last norm of the trunk."""
        return self.trunk.norm

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, T, W]`` to ``[B, T, W]``, as `Transformer`; all tokens are real."""
        if mask is not None:
            raise ValueError("token merging takes no mask: its inputs have a fixed size")
        x = self.trunk.pre_norm(x)
        count = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        now = Merged(x, torch.ones_like(x[..., 0], dtype=torch.float32), count)
        for each in self.trunk.blocks:
            block: Any = each
            mixed, keys = proportional(block.attention, block.norm_1(now.tokens), now.sizes)
            tokens = now.tokens + block.scale_1(mixed)
            now = merge(now._replace(tokens=tokens), keys, self.per_block, self.keep_first)
            tokens = now.tokens + block.scale_2(block.mlp(block.norm_2(now.tokens)))
            now = now._replace(tokens=tokens)
        out: Tensor = self.trunk.norm(now.tokens)
        return out.gather(1, now.places[..., None].expand(-1, -1, out.shape[2]))


def proportional(attention: Attention, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Attention in which a token counts as often as it stands for others; and the keys.

    Returns:
        ``[B, T, W]``, and what tokens are compared by: the heads' mean key ``[B, T, W / heads]``.
    """
    q, k, v = attention.project(x)
    heads = k.reshape(*k.shape[:2], attention.num_heads, -1)
    mean = heads.mean(dim=2)
    weights = sizes.log()
    if attention.bias_k is not None and attention.bias_v is not None:
        k = torch.cat([k, attention.bias_k.to(k.dtype).expand(x.shape[0], 1, -1)], dim=1)
        v = torch.cat([v, attention.bias_v.to(v.dtype).expand(x.shape[0], 1, -1)], dim=1)
        weights = F.pad(weights, (0, 1))
    bias = weights[:, None, None, :].to(q.dtype)
    out: Tensor = attention.out(attend(q, k, v, attention.num_heads, bias))
    return out, mean


def merge(now: Merged, keys: Tensor, count: int, keep_first: bool) -> Merged:
    """Merges ``count`` tokens of even places, each into the one of odd place that is most alike.

    Args:
        now: the tokens.
        keys: ``[B, T, K]``, what they are compared by.
        count: of tokens; at most half of them are merged.
        keep_first: leaves the first token as it is.
    """
    keys = F.normalize(keys.float(), dim=-1)
    even, odd = keys[:, ::2], keys[:, 1::2]
    count = min(count, odd.shape[1], even.shape[1] - int(keep_first))
    if count < 1:
        return now
    alike = even @ odd.transpose(1, 2)
    best, target = alike.max(dim=2)
    if keep_first:
        best = best.index_fill(1, torch.zeros(1, dtype=torch.int64, device=best.device), -torch.inf)
    order = best.argsort(dim=1, descending=True, stable=True)
    gone, kept = order[:, :count], order[:, count:].sort(dim=1).values
    into = target.gather(1, gone)

    def joined(values: Tensor) -> Tensor:  # [B, T, X], summed
        own, other = values[:, ::2], values[:, 1::2]
        wide = (-1, -1, values.shape[2])
        added = own.gather(1, gone[..., None].expand(wide))
        other = other.scatter_add(1, into[..., None].expand(wide), added)
        return torch.cat([own.gather(1, kept[..., None].expand(wide)), other], dim=1)

    sizes = joined(now.sizes[..., None])
    tokens = joined(now.tokens * now.sizes[..., None].to(now.tokens.dtype))
    tokens = tokens / sizes.to(tokens.dtype)
    left = kept.shape[1]
    moved = torch.empty(keys.shape[:2], dtype=torch.int64, device=keys.device)
    of_even = torch.empty(even.shape[:2], dtype=torch.int64, device=keys.device)
    of_even = of_even.scatter(1, kept, torch.arange(left, device=keys.device).expand_as(kept))
    of_even = of_even.scatter(1, gone, into + left)
    moved[:, ::2] = of_even
    moved[:, 1::2] = torch.arange(odd.shape[1], device=keys.device) + left
    return Merged(tokens, sizes[..., 0], moved.gather(1, now.places))


def is_on_grid(encoder: object) -> bool:
    """Whether an encoder is a transformer on a grid: a ViT, of pictures or of other signals."""
    return isinstance(encoder, GridTransformer)


def merge_tokens(model: EmbeddingModel, per_block: int) -> list[str]:
    """Puts `TokenMerging` into every tower on a grid; the modalities of those.

    Raises:
        ValueError: if there is none, or ``per_block`` is below 1.
    """
    done = []
    for name in model.towers:
        encoder: Any = model.tower(name).encoder
        if not is_on_grid(encoder):
            continue
        done.append(name)
        if not isinstance(encoder.trunk, TokenMerging):  # a tower that modalities share has it
            encoder.trunk = TokenMerging(encoder.trunk, per_block, encoder.class_token is not None)
    if not done:
        raise ValueError("token merging is for towers on a grid (ViT), and the model has none")
    return done
