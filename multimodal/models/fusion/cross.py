"""Fusion by cross-attention between the tokens of modalities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from multimodal.models.fusion.base import (
    AttentionMap,
    FusionOutput,
    Stream,
    joined,
    mean_of_present,
)
from multimodal.models.fusion.stacks import (
    AttentionFusion,
    ModalityEmbeddings,
    PooledTokens,
    self_attention_block,
    stack,
)
from multimodal.models.layers.cross import CrossBlock


@dataclass(eq=False, repr=False)
class CrossAttentionFusion(AttentionFusion):
    """Every modality's tokens attend to every other's, with a stack per ordered pair.

    For a pair i, j the tokens of i pass ``num_layers`` blocks that attend to the tokens of j, as
    the crossmodal transformers of Tsai et al. 2019, "Multimodal Transformer for Unaligned
    Multimodal Language Sequences", section 3.2; what i has read in the present others is averaged
    (unchanged without any). With ``query``, only that modality reads, and the result is its
    tokens': text that reads a picture, as in ALBEF (Li et al. 2021, section 3.1). Where the query
    is absent, a learned token replaces it.

    The features are a mean over modalities (over the query alone, where there is one): of each,
    the mean of its tokens, normalised and projected.

    Args:
        num_layers: blocks per ordered pair.
        query: the one modality that reads the others; None: all read each other.

    Raises:
        ValueError: if given a query that is not a modality.
    """

    num_layers: int = 1
    query: str | None = None

    def build(self) -> None:
        """A stack of blocks per ordered pair, and the token that replaces an absent query."""
        if self.query is not None and self.query not in self.widths:
            raise ValueError(
                f"query={self.query!r} is not a modality of this fusion: {', '.join(self.widths)}"
            )
        self.readers = self.modalities if self.query is None else (self.query,)
        self.pairs = nn.ModuleDict(
            {
                f"{reader}_from_{other}": stack(self.num_layers, lambda: CrossBlock(*self.sizes))
                for reader in self.readers
                for other in self.modalities
                if other != reader
            }
        )
        self.pool = PooledTokens(self.readers, self.width)
        drawn = None if self.query is None else nn.Parameter(torch.randn(self.width) * 0.02)
        self.stand_in = drawn

    def fuse(self, streams: dict[str, Stream], need_attention: bool) -> FusionOutput:
        """The readers' tokens, each having read the others."""
        readers = self._readers(streams)
        attention: list[AttentionMap] = []
        read = {
            name: Stream(
                stream.features,
                self._read(name, stream, streams, attention if need_attention else None),
                stream.mask,
                stream.present,
            )
            for name, stream in readers.items()
        }
        return FusionOutput(self.pool(read), *joined(read), attention)

    def _readers(self, streams: dict[str, Stream]) -> dict[str, Stream]:
        if self.query is None:
            return streams
        assert self.stand_in is not None
        if self.query not in streams:
            other = next(iter(streams.values()))
            tokens = self.stand_in.to(other.tokens.dtype).expand(other.tokens.shape[0], 1, -1)
            everywhere = torch.ones_like(other.present)
            return {self.query: Stream(tokens[:, 0], tokens, everywhere[:, None], everywhere)}
        own = streams[self.query]
        first = torch.arange(own.tokens.shape[1], device=own.mask.device) == 0
        placeholder_mask = ~own.present[:, None] & first  # [B, T]
        tokens = torch.where(
            placeholder_mask[..., None], self.stand_in.to(own.tokens.dtype), own.tokens
        )
        return {
            self.query: Stream(
                own.features, tokens, own.mask | placeholder_mask, torch.ones_like(own.present)
            )
        }

    def _read(
        self,
        reader: str,
        stream: Stream,
        streams: dict[str, Stream],
        attention: list[AttentionMap] | None,
    ) -> Tensor:
        results, present = [], []
        for name, other in streams.items():
            if name == reader:
                continue
            tokens = stream.tokens
            blocks = cast("Iterable[CrossBlock]", self.pairs[f"{reader}_from_{name}"])
            for block in blocks:
                if attention is not None:
                    weights = block.weights(tokens, other.tokens, other.mask)
                    spans = {name: (0, other.tokens.shape[1])}
                    attention.append(AttentionMap(reader, weights, spans, stream.mask))
                tokens = block(tokens, other.tokens, other.mask)
            results.append(tokens)
            present.append(other.present)
        if not results:
            return stream.tokens
        alone = ~torch.stack(present).any(dim=0)
        return torch.where(alone[:, None, None], stream.tokens, mean_of_present(results, present))


@dataclass(eq=False, repr=False)
class CoAttentionFusion(AttentionFusion):
    """Layers in which every modality reads all others at once, then itself.

    Source: Lu et al. 2019, "ViLBERT", section 2.2 (co-attentional transformer layers), for any
    number of modalities: the context is the tokens of all others. All read at the same time, so
    that no order of modalities matters.

    Args:
        num_layers: layers of one cross-attention and one self-attention block per modality.
    """

    num_layers: int = 1

    def build(self) -> None:
        """Blocks of cross-attention and of self-attention for every modality."""
        self.kinds = ModalityEmbeddings(self.modalities, self.width)
        sizes, names = self.sizes, self.modalities
        self.cross = stack(
            self.num_layers, lambda: nn.ModuleDict({name: CrossBlock(*sizes) for name in names})
        )
        self.own = stack(
            self.num_layers,
            lambda: nn.ModuleDict({name: self_attention_block(*sizes) for name in names}),
        )
        self.pool = PooledTokens(names, self.width)

    def fuse(self, streams: dict[str, Stream], need_attention: bool) -> FusionOutput:
        """The tokens of all modalities, each having read the others."""
        attention: list[AttentionMap] = []
        for cross, own in zip(self.cross, self.own, strict=True):
            read = {}
            encoded = self.kinds(streams)
            for name, stream in streams.items():
                tokens = stream.tokens
                # The context says whose tokens it holds; with one modality there is none.
                others = {other: encoded[other] for other in encoded if other != name}
                if others:
                    context, mask, spans = joined(others)
                    block = cross[name]  # type: ignore[index]
                    if need_attention:
                        weights = block.weights(tokens, context, mask)
                        attention.append(AttentionMap(name, weights, spans, stream.mask))
                    tokens = block(tokens, context, mask)
                tokens = own[name](tokens, stream.mask)  # type: ignore[index]
                read[name] = Stream(stream.features, tokens, stream.mask, stream.present)
            streams = read
        return FusionOutput(self.pool(streams), *joined(streams), attention)
