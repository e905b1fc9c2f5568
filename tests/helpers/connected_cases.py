"""Tiny random language models, and models whose other towers are connected to them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from multimodal.models.encoders.connected import ConnectedEncoder
from multimodal.models.encoders.features import FeatureEncoder
from multimodal.models.encoders.huggingface import HuggingFaceEncoder
from multimodal.models.encoders.text import TextTransformer
from multimodal.models.heads import IdentityHead
from multimodal.models.layers.connectors import LinearConnector
from multimodal.models.layers.transformer import Transformer
from multimodal.models.towers import EmbeddingModel, Tower

WIDTH, WORDS, FEATURES = 32, 50, 6
SMALL = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "vocab_size": WORDS, "max_position_embeddings": 24, "pad_token_id": 0,
}  # fmt: skip
BERT = {"model_type": "bert", **SMALL}
QWEN = {"model_type": "qwen3", **SMALL, "num_key_value_heads": 1, "head_dim": 16}
T5 = {"model_type": "t5", "d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2,
      "vocab_size": WORDS, "is_encoder_decoder": False}  # fmt: skip


class Letters:
    """A tokenizer of lower-case letters and spaces: ids 5 to 31."""

    start: int | None = 1
    end: int | None = 2
    vocab_size, pad = WORDS, 0

    def encode(self, text: str) -> list[int]:
        return [5 + "abcdefghijklmnopqrstuvwxyz ".index(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join("abcdefghijklmnopqrstuvwxyz "[i - 5] for i in ids if 5 <= i < 32)


def text_encoder(kind: str = "bert", **choices: Any) -> nn.Module:
    """A tiny language model: ``bert``, ``qwen`` (causal), ``t5`` or ``ours``."""
    if kind == "ours":
        return TextTransformer(WORDS, 24, Transformer(WIDTH, 2, 2), pooling="mean")
    config = {"bert": BERT, "qwen": QWEN, "t5": T5}[kind]
    part = "encoder" if kind == "t5" else "whole"
    pooling = "last" if kind == "qwen" else "mean"
    return HuggingFaceEncoder(config=config, part=part, **{"pooling": pooling, **choices})


def connected(encoder: nn.Module | None = None, **choices: Any) -> ConnectedEncoder:
    """A connected encoder on vectors."""
    given: dict[str, Any] = {"connector": LinearConnector, "width": WIDTH, "tokenizer": Letters()}
    encoder = FeatureEncoder(FEATURES, width=8) if encoder is None else encoder
    return ConnectedEncoder(encoder, **{**given, **choices})


def head() -> partial[IdentityHead]:
    return partial(IdentityHead, embed_dim=WIDTH)


def model(
    text: nn.Module | None = None, frozen: bool = True, **encoders: ConnectedEncoder
) -> EmbeddingModel:
    """A text tower and the towers connected to it."""
    text = text_encoder() if text is None else text
    towers = {name: Tower(encoder, head()) for name, encoder in encoders.items()}
    return EmbeddingModel({"text": Tower(text, head(), frozen=frozen), **towers})


def ids(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random texts of these lengths, start and end included, and their mask."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    inputs = torch.randint(5, 31, mask.shape)
    inputs[:, 0] = 1
    for row, length in enumerate(lengths):
        inputs[row, length - 1], inputs[row, length:] = 2, 0
    return inputs, mask
