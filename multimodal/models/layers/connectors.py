"""Connectors: an encoder's tokens ``[B, T, F]`` to tokens ``[B, K, W]`` of a language model.

Sizes in comments: B batch, T tokens of the encoder, F their width, K tokens that come out, W width
of the language model. A mask is bool, True where a token is real.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from multimodal.models.layers.attending import check_heads
from multimodal.models.layers.cross import CrossBlock
from multimodal.models.layers.transformer import MLP, Block, init_linear

Tokens = tuple[Tensor, "Tensor | None"]  # tokens [B, K, W], mask [B, K] or None: all are real


class Connector(nn.Module, ABC):
    """Base of the connectors.

    What comes in is normalised, and what goes out starts with the size of word embeddings, so that
    a frozen language model is given nothing unheard of.

    Args:
        in_features: F.
        width: W.
        norm: a LayerNorm on what comes in.
        init_rms: root mean square of the tokens' values at the start; word embeddings of BERTs have
            about 0.05, those of Qwen3 about 0.03.

    Raises:
        ValueError: if ``init_rms`` is not above 0.
    """

    def __init__(self, in_features: int, width: int, norm: bool, init_rms: float) -> None:
        super().__init__()
        if not init_rms > 0:
            raise ValueError(f"init_rms={init_rms}: expected a number above 0")
        self.in_features, self.width, self.init_rms = in_features, width, init_rms
        self.norm = nn.LayerNorm(in_features) if norm else nn.Identity()

    @abstractmethod
    def connect(self, tokens: Tensor, mask: Tensor | None) -> Tokens:
        """Normalised tokens ``[B, T, F]`` to tokens ``[B, K, W]``."""

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tokens:
        """An encoder's tokens to a language model's.

        Args:
            tokens: ``[B, T, F]``.
            mask: ``[B, T]``; None: all are real.

        Returns:
            tokens ``[B, K, W]`` and their mask ``[B, K]``, or None where all are real.

        Raises:
            ValueError: if given tokens of another width.
        """
        if tokens.ndim != 3 or tokens.shape[2] != self.in_features:
            raise ValueError(
                f"{type(self).__name__} expects tokens [B, T, {self.in_features}], got "
                f"{list(tokens.shape)}"
            )
        if mask is not None:  # what is not a token, even NaN, must not reach the result
            tokens = tokens.masked_fill(~mask[..., None], 0.0)
        return self.connect(self.norm(tokens), mask)

    def _unfold(self, tokens: Tensor, mask: Tensor | None, each: int) -> Tokens:
        """``[B, T, each * W]`` as ``[B, T * each, W]``."""
        mask = mask if mask is None else mask.repeat_interleave(each, dim=1)
        return tokens.reshape(len(tokens), tokens.shape[1] * each, self.width), mask


class LinearConnector(Connector):
    """One matrix (Liu et al. 2023, "Visual Instruction Tuning", section 4.1).

    Args:
        in_features: F.
        width: W.
        tokens_per_input: tokens that every token of the encoder becomes.
        norm: a LayerNorm first.
        init_rms: size of the tokens at the start; see `Connector`.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        tokens_per_input: int = 1,
        norm: bool = True,
        init_rms: float = 0.05,
    ) -> None:
        super().__init__(in_features, width, norm, init_rms)
        self.tokens_per_input = _at_least_1("tokens_per_input", tokens_per_input)
        self.projection = nn.Linear(in_features, tokens_per_input * width)
        init_linear(self.projection, init_rms * in_features**-0.5)

    def connect(self, tokens: Tensor, mask: Tensor | None) -> Tokens:
        """K = T * ``tokens_per_input``."""
        return self._unfold(self.projection(tokens), mask, self.tokens_per_input)


class MLPConnector(Connector):
    """Two layers with GELU between (Liu et al. 2024, "Improved Baselines", section 3.2).

    Args:
        in_features: F.
        width: W.
        hidden: width between the two; None: W.
        tokens_per_input: tokens that every token of the encoder becomes.
        dropout: on the normalised input.
        norm: a LayerNorm first.
        init_rms: size of the tokens at the start; see `Connector`.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        hidden: int | None = None,
        tokens_per_input: int = 1,
        dropout: float = 0.0,
        norm: bool = True,
        init_rms: float = 0.05,
    ) -> None:
        super().__init__(in_features, width, norm, init_rms)
        self.tokens_per_input = _at_least_1("tokens_per_input", tokens_per_input)
        hidden = width if hidden is None else hidden
        self.dropout = nn.Dropout(dropout)
        self.mlp = MLP(in_features, hidden, out=tokens_per_input * width)
        init_linear(self.mlp.fc1, (2 / in_features) ** 0.5)
        init_linear(self.mlp.fc2, init_rms * hidden**-0.5)

    def connect(self, tokens: Tensor, mask: Tensor | None) -> Tokens:
        """K = T * ``tokens_per_input``."""
        return self._unfold(self.mlp(self.dropout(tokens)), mask, self.tokens_per_input)


class ResamplerConnector(Connector):
    """K learned queries read all tokens, then each other: K tokens whatever the input's length.

    Sources: Jaegle et al. 2021, "Perceiver", section 3; Alayrac et al. 2022, "Flamingo", section
    3.1.1; Li et al. 2023, "BLIP-2", section 3.1.

    Args:
        in_features: F.
        width: W.
        num_queries: K.
        hidden: width of the queries, a multiple of ``num_heads``; None: W.
        num_heads: attention heads.
        num_layers: layers of one cross-attention and one self-attention block.
        mlp_ratio: hidden width of a block's MLP over that of the queries.
        norm: a LayerNorm first.
        init_rms: size of the tokens at the start; see `Connector`.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        num_queries: int = 8,
        hidden: int | None = None,
        num_heads: int = 4,
        num_layers: int = 1,
        mlp_ratio: float = 4.0,
        norm: bool = True,
        init_rms: float = 0.05,
    ) -> None:
        super().__init__(in_features, width, norm, init_rms)
        _at_least_1("num_queries", num_queries)
        _at_least_1("num_layers", num_layers)
        hidden = width if hidden is None else hidden
        check_heads(hidden, num_heads)
        self.queries = nn.Parameter(torch.empty(num_queries, hidden))
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.input = nn.Linear(in_features, hidden)
        init_linear(self.input, in_features**-0.5)
        sizes = (hidden, num_heads, mlp_ratio, num_layers)
        self.cross = nn.ModuleList([CrossBlock(*sizes) for _ in range(num_layers)])
        self.own = nn.ModuleList([Block(hidden, num_heads, mlp_ratio) for _ in range(num_layers)])
        for block in self.own:
            block.init(num_layers)  # type: ignore[operator]
        self.final_norm = nn.LayerNorm(hidden)
        self.output = nn.Linear(hidden, width)
        init_linear(self.output, init_rms * hidden**-0.5)

    def connect(self, tokens: Tensor, mask: Tensor | None) -> Tokens:
        """K tokens, all of them real."""
        tokens = self.input(tokens)
        queries = self.queries.to(tokens.dtype).expand(len(tokens), -1, -1)
        for cross, own in zip(self.cross, self.own, strict=True):
            queries = own(cross(queries, tokens, mask))
        return self.output(self.final_norm(queries)), None


class PixelShuffleConnector(Connector):
    """Squares of r x r tokens of a grid become one token each, then an MLP.

    Source: Chen et al. 2024, "How Far Are We to GPT-4V?" (InternVL 1.5), section 3.1.

    Args:
        in_features: F.
        width: W.
        factor: r, a divisor of the grid's sides.
        extra_tokens: tokens before the grid's (class token, registers), which are left out.
        grid: height and width of the grid in tokens; None: a square.
        hidden: width between the two layers; None: W.
        norm: a LayerNorm first.
        init_rms: size of the tokens at the start; see `Connector`.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        factor: int = 2,
        extra_tokens: int = 0,
        grid: tuple[int, int] | None = None,
        hidden: int | None = None,
        norm: bool = True,
        init_rms: float = 0.05,
    ) -> None:
        super().__init__(in_features, width, norm, init_rms)
        self.factor, self.extra_tokens = _at_least_1("factor", factor), extra_tokens
        self.grid = None if grid is None else (int(grid[0]), int(grid[1]))
        joined, hidden = in_features * factor**2, width if hidden is None else hidden
        self.mlp = MLP(joined, hidden, out=width)
        init_linear(self.mlp.fc1, (2 / joined) ** 0.5)
        init_linear(self.mlp.fc2, init_rms * hidden**-0.5)

    def connect(self, tokens: Tensor, mask: Tensor | None) -> Tokens:
        """K = (T - ``extra_tokens``) / r², row by row."""
        if mask is not None:
            raise ValueError("pixel shuffle takes whole grids, but some tokens are padding")
        tokens = tokens[:, self.extra_tokens :]
        count, r = tokens.shape[1], self.factor
        height, width = self.grid or (math.isqrt(count), math.isqrt(count))
        if height * width != count or height % r or width % r:
            raise ValueError(
                f"{count} tokens after {self.extra_tokens} extra ones are not a grid of "
                f"{height} x {width} that {r} x {r} divides: set connector.extra_tokens, "
                "connector.grid or connector.factor"
            )
        cut = tokens.reshape(len(tokens), height // r, r, width // r, r, tokens.shape[2])
        joined = cut.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
        return self.mlp(joined), None


def _at_least_1(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}={value}: expected at least 1")
    return value
