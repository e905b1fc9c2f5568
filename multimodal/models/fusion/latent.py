"""Fusion through a few learned tokens, or in one encoder over everything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from multimodal.models.fusion.base import (
    AttentionMap,
    FusionOutput,
    Stream,
    joined,
    masked_mean,
    mean_of_present,
)
from multimodal.models.fusion.stacks import (
    AttentionFusion,
    ModalityEmbeddings,
    learned_tokens,
    self_attention_block,
    stack,
)
from multimodal.models.layers.cross import CrossBlock, self_attention_weights
from multimodal.models.layers.transformer import Block, Transformer


@dataclass(eq=False, repr=False)
class BottleneckFusion(AttentionFusion):
    """Modalities exchange information only through a few bottleneck tokens.

    In every layer each modality's tokens and the bottleneck attend to each other; the bottleneck of
    the next layer is the mean of what the present modalities made of it.
    Source: Nagrani et al. 2021, "Attention Bottlenecks for Multimodal Fusion", section 3.3. The
    features are the mean of the modalities' pooled tokens, as the paper averages their logits, and
    the bottleneck's mean is added, or a single layer would not fuse.

    Args:
        num_layers: layers; each modality has its own blocks.
        num_bottlenecks: bottleneck tokens.
    """

    num_bottlenecks: int = 4

    def build(self) -> None:
        """The bottleneck, and a block per layer and modality."""
        self.bottleneck = learned_tokens(self.num_bottlenecks, self.width, "num_bottlenecks")
        sizes, names = self.sizes, self.modalities
        self.layers = stack(
            self.num_layers,
            lambda: nn.ModuleDict({name: self_attention_block(*sizes) for name in names}),
        )
        self.norm = nn.LayerNorm(self.width)

    def fuse(self, streams: dict[str, Stream], need_attention: bool) -> FusionOutput:
        """The modalities' tokens after the last layer."""
        attention: list[AttentionMap] = []
        present = [stream.present for stream in streams.values()]
        count = len(self.bottleneck)
        first = next(iter(streams.values())).tokens
        shared = self.bottleneck.to(first.dtype).expand(first.shape[0], -1, -1)
        for layer in self.layers:
            read, made = {}, []
            for name, stream in streams.items():
                block: Block = layer[name]  # type: ignore[index]
                both = torch.cat([stream.tokens, shared], dim=1)
                mask = nn.functional.pad(stream.mask, (0, count), value=True)
                length = stream.tokens.shape[1]
                if need_attention:
                    weights = self_attention_weights(block.attention, block.norm_1(both), mask)
                    spans = {name: (0, length), "bottleneck": (length, length + count)}
                    attention.append(AttentionMap("bottleneck", weights[:, :, length:], spans))
                both = block(both, mask)
                read[name] = Stream(stream.features, both[:, :length], stream.mask, stream.present)
                made.append(both[:, length:])
            streams, shared = read, mean_of_present(made, present)
        pooled = [masked_mean(self.norm(s.tokens), s.mask) for s in streams.values()]
        features = mean_of_present(pooled, present) + self.norm(shared).mean(dim=1)
        return FusionOutput(features, *joined(streams), attention)


@dataclass(eq=False, repr=False)
class ResamplerFusion(AttentionFusion):
    """Learned latents read all tokens of all modalities, then each other.

    Source: Jaegle et al. 2021, "Perceiver", section 3; Alayrac et al. 2022, "Flamingo", section
    3.1.1. With one layer over pictures it is CoCa's attentional pooler (Yu et al. 2022, section
    3.2). The fused tokens are the latents: their number does not depend on the inputs.

    Args:
        num_layers: layers of one cross-attention and one self-attention block.
        num_latents: latents, of width W.
    """

    num_latents: int = 8

    def build(self) -> None:
        """The latents, and the blocks by which they read."""
        self.kinds = ModalityEmbeddings(self.modalities, self.width)
        self.latents = learned_tokens(self.num_latents, self.width, "num_latents")
        self.cross = stack(self.num_layers, lambda: CrossBlock(*self.sizes))
        self.own = stack(self.num_layers, lambda: self_attention_block(*self.sizes))
        self.norm = nn.LayerNorm(self.width)

    def fuse(self, streams: dict[str, Stream], need_attention: bool) -> FusionOutput:
        """The latents, and their mean."""
        tokens, mask, spans = joined(self.kinds(streams))
        attention: list[AttentionMap] = []
        latents = self.latents.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        for cross, own in zip(self.cross, self.own, strict=True):
            if need_attention:
                weights = cross.weights(latents, tokens, mask)  # type: ignore[operator]
                attention.append(AttentionMap("latent", weights, spans))
            latents = own(cross(latents, tokens, mask))
        latents = self.norm(latents)
        everywhere = latents.new_ones(latents.shape[:2], dtype=torch.bool)
        own_span = {"latent": (0, latents.shape[1])}
        return FusionOutput(latents.mean(dim=1), latents, everywhere, own_span, attention)


@dataclass(eq=False, repr=False)
class MergedFusion(AttentionFusion):
    """One transformer over a class token and the tokens of all modalities.

    As VideoBERT, UNITER and their kin (Chen et al. 2020, "UNITER", section 3.1), with an embedding
    per modality. The features are the class token's.

    Args:
        num_layers: blocks.
    """

    def build(self) -> None:
        """The transformer and its class token."""
        self.trunk = Transformer(self.width, self.num_layers, self.num_heads, self.mlp_ratio)
        self.kinds = ModalityEmbeddings(self.modalities, self.width)
        self.class_token = learned_tokens(1, self.width, "class_token")

    def fuse(self, streams: dict[str, Stream], need_attention: bool) -> FusionOutput:
        """The modalities' tokens after the last block; the class token's as features."""
        tokens, mask, spans = joined(self.kinds(streams))
        first = self.class_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        mask = nn.functional.pad(mask, (1, 0), value=True)
        moved = {name: (start + 1, stop + 1) for name, (start, stop) in spans.items()}
        attention: list[AttentionMap] = []
        if need_attention:
            x = tokens
            for block in self.trunk.blocks:
                assert isinstance(block, Block)
                weights = self_attention_weights(block.attention, block.norm_1(x), mask)
                own = {"class": (0, 1), **moved}
                attention.append(AttentionMap("class", weights[:, :, :1], own))
                attention += [
                    AttentionMap(name, weights[:, :, start:stop], own, mask[:, start:stop])
                    for name, (start, stop) in moved.items()
                ]
                x = block(x, mask)
        tokens = self.trunk(tokens, mask)
        return FusionOutput(tokens[:, 0], tokens[:, 1:], mask[:, 1:], spans, attention)
