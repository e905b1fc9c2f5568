"""Texts for a transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multimodal.data.draw import Draw
from multimodal.data.errors import DecodeError
from multimodal.data.tokenizers import END, START, load_tokenizer


class TextTransform:
    """Token ids between a start and an end token, cut to a length, the end token kept.

    Args:
        tokenizer: a ``tokenizers`` JSON file; ``samples://NAME`` for one of the sample corpus.
        context_length: most tokens of a text, start and end included.

    Raises:
        FileNotFoundError: if there is no such tokenizer.
        ValueError: if ``context_length`` leaves no room for a text.
    """

    def __init__(self, tokenizer: str, context_length: int) -> None:
        if context_length < 3:
            raise ValueError(f"context_length must be at least 3, got {context_length}")
        self.tokenizer = load_tokenizer(tokenizer)
        self.context_length = context_length
        self._start = self.tokenizer.token_to_id(START)
        self._end = self.tokenizer.token_to_id(END)

    def __call__(self, value: Any, draw: Draw | None) -> Tensor:
        """One text.

        Args:
            value: the text.
            draw: unused: nothing about a text is random once it has been chosen.

        Returns:
            int64 ``[T]``, T at most ``context_length``.

        Raises:
            DecodeError: if the value is no text, or an empty one.
        """
        if not isinstance(value, str):
            raise DecodeError("unsupported", f"expected a text, got {type(value).__name__}")
        ids = self.tokenizer.encode(value, add_special_tokens=False).ids
        if not ids:
            raise DecodeError("empty", "the text has no characters")
        return torch.tensor([self._start, *ids[: self.context_length - 2], self._end])

    def collate(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The texts padded with 0 to the longest, and where they are real: ``[B, T]`` both."""
        ids = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        lengths = torch.tensor([len(text) for text in inputs])
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]
