"""The text transformer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.core.errors import InputMismatchError
from multimodal.models.encoders.transformer import TransformerEncoder, check_mask
from multimodal.models.layers.pooling import Pooling
from multimodal.models.layers.transformer import Transformer

TextPooling = Literal["end", "last", "mean", "attention"]


class TextTransformer(TransformerEncoder):
    """A transformer on token ids, causal as CLIP's or bidirectional as SigLIP's (by its trunk).

    Sources: Radford et al. 2021 (CLIP), section 2.4, and its release for the initialisation;
    Zhai et al. 2023 (SigLIP).

    Args:
        vocab_size: number of token ids.
        context_length: longest text in tokens.
        trunk: the transformer.
        pooling: ``end`` (the end-of-text token: the last real one, or without a mask the one with
            the highest id, as in CLIP's vocabulary), ``last``, ``mean`` or ``attention``.
        attend_padding: padding is read as any other token, so that the mask says nothing and
            every text has ``context_length`` tokens (SigLIP).
        packed: computes no padding (but in attention); the result is the same up to rounding.

    Raises:
        ValueError: if given choices that do not exist or do not go together.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        trunk: Transformer,
        pooling: TextPooling = "end",
        attend_padding: bool = False,
        packed: bool = False,
    ) -> None:
        if pooling == "class":  # type: ignore[comparison-overlap]
            raise ValueError("pooling='class': a text has none; use end, last, mean or attention")
        if pooling == "end" and attend_padding:
            raise ValueError("pooling='end' with attend_padding: use last, mean or attention")
        if packed and attend_padding:
            raise ValueError("packed=true with attend_padding: padding that is read must be there")
        pool: Pooling = "last" if pooling == "end" else pooling
        super().__init__(trunk, (context_length,), pooling=pool, packed=packed)
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.find_end = pooling == "end"
        self.attend_padding = attend_padding
        self.embedding = nn.Embedding(vocab_size, trunk.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encode a batch of texts.

        Args:
            inputs: int64 ids ``[B, T]``, T at most ``context_length``, padded on the right.
            mask: bool ``[B, T]``, True where a token is real.

        Raises:
            ValueError: if given inputs or a mask mismatched shapes or type.
        """
        self.check_inputs(inputs, mask)
        if self.attend_padding:
            mask = None
        elif mask is None and self.find_end:
            places = torch.arange(inputs.shape[1], device=inputs.device)
            mask = places <= inputs.argmax(dim=1, keepdim=True)
        return self.encode_tokens(self.embedding(inputs), mask)

    def token_table(self) -> nn.Embedding:
        """The table that turns ids into vectors ``[W]``, for a ``ConnectedEncoder``."""
        return self.embedding

    def encode_embedded(self, embedded: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """As `forward`, of vectors ``[B, T, W]`` in place of token ids.

        Raises:
            InputMismatchError: if there are more than ``context_length``.
        """
        if embedded.shape[1] > self.context_length or self.attend_padding:
            raise InputMismatchError(
                f"TextTransformer expects at most {self.context_length} vectors, and no padding "
                f"that is read (attend_padding), got {embedded.shape[1]} vectors"
            )
        return self.encode_tokens(embedded, mask)

    def check_inputs(self, inputs: Tensor, mask: Tensor | None) -> None:
        """Refuses what `forward` cannot take.

        Raises:
            InputMismatchError: naming the expected and the given input.
        """
        if inputs.ndim != 2 or inputs.is_floating_point() or inputs.shape[1] > self.context_length:
            raise InputMismatchError(
                f"TextTransformer expects integer ids [B, T <= {self.context_length}], "
                f"got {inputs.dtype} {list(inputs.shape)}"
            )
        if self.attend_padding and inputs.shape[1] != self.context_length:
            raise InputMismatchError(
                f"attend_padding: texts must be padded to {self.context_length} tokens, "
                f"got {inputs.shape[1]}"
            )
        check_mask(mask, inputs.shape)
