"""What fusions by attention are built of: stacks of blocks, modality embeddings, pooled tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from multimodal.models.fusion.base import Fusion, Stream, masked_mean, mean_of_present
from multimodal.models.layers.transformer import Block


@dataclass(eq=False, repr=False)
class AttentionFusion(Fusion):
    """Base of the fusions by attention; a fusion adds arguments of its own as fields.

    Args:
        widths: modality -> width of its encoder.
        width: W of the tokens and of the result, a multiple of ``num_heads``.
        num_heads: attention heads.
        num_layers: layers, of what the fusion says.
        mlp_ratio: hidden width of a block's MLP over W.

    Raises:
        ValueError: if given sizes that do not fit.
    """

    widths: Mapping[str, int]
    width: int
    num_heads: int
    num_layers: int = 2
    mlp_ratio: float = field(default=4.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__init__(self.widths, self.width)
        self.build()

    @abstractmethod
    def build(self) -> None:
        """Makes the modules."""

    @property
    def sizes(self) -> tuple[int, int, float, int]:
        """Width, heads, MLP ratio and layers, as blocks take them."""
        return self.width, self.num_heads, self.mlp_ratio, self.num_layers


def stack(num_layers: int, make: Callable[[], nn.Module]) -> nn.ModuleList:
    """``num_layers`` modules that ``make`` makes.

    Raises:
        ValueError: if given less than one.
    """
    if num_layers < 1:
        raise ValueError(f"num_layers={num_layers}: expected at least 1")
    return nn.ModuleList(make() for _ in range(num_layers))


def self_attention_block(width: int, num_heads: int, mlp_ratio: float, num_layers: int) -> Block:
    """A block of self-attention, initialised as one of a stack of ``num_layers``."""
    block = Block(width, num_heads, mlp_ratio)
    block.init(num_layers)
    return block


def learned_tokens(count: int, width: int, name: str) -> nn.Parameter:
    """``[count, width]``, near zero.

    Raises:
        ValueError: if ``count`` < 1 (``name`` is used in the message).
    """
    if count < 1:
        raise ValueError(f"{name}={count}: expected at least 1")
    return nn.Parameter(torch.randn(count, width) * 0.02)


class ModalityEmbeddings(nn.Module):
    """An embedding per modality, which identifies its tokens.

    Args:
        modalities: their names.
        width: W of the tokens.
    """

    def __init__(self, modalities: Sequence[str], width: int) -> None:
        super().__init__()
        self.of = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(width) * 0.02) for name in modalities}
        )

    def forward(self, streams: Mapping[str, Stream]) -> dict[str, Stream]:
        """The streams, each one's tokens plus its embedding."""
        return {
            name: Stream(s.features, s.tokens + self.of[name], s.mask, s.present)
            for name, s in streams.items()
        }


class PooledTokens(nn.Module):
    """A mean over modalities: of each, the mean of its tokens, normalised and projected.

    Args:
        modalities: their names.
        width: W of the tokens and of the result.
    """

    def __init__(self, modalities: Sequence[str], width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in modalities})
        self.outputs = nn.ModuleDict({name: nn.Linear(width, width) for name in modalities})

    def forward(self, streams: Mapping[str, Stream]) -> Tensor:
        """``[B, W]``, over the modalities that a sample has."""
        pooled = [
            self.outputs[name](masked_mean(self.norms[name](stream.tokens), stream.mask))
            for name, stream in streams.items()
        ]
        return mean_of_present(pooled, [stream.present for stream in streams.values()])
