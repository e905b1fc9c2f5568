"""Texts for a transformer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimodal.core.hf_files import chat_of
from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.tokenizers.bpe import BPETokenizer, TextTokenizer

PLACE = "{}"  # of the text in an instruction
_BYTES = 4  # of a text to a token, about, where only its length is known
_WORDS = 8  # times the context length: more characters are not tokenized


class TextTransform:
    """Token ids between a start and an end token, cut to a length, the end token kept.

    Args:
        tokenizer: a block that builds one, or the JSON file of a ``BPETokenizer``
            (``samples://NAME`` for one of the sample corpus).
        context_length: most tokens of a text, start and end included.
        fill: pads every text to ``context_length``, for a text tower that reads its padding
            (``attend_padding``), and not to the longest of the batch.
        instruction: text before every text, for language models that expect a task description
            ("Instruct: find the picture\\nQuery: "); or around its ``{}``, as a chat template
            stands. It is never dropped. Texts of several tasks or sides are modalities of their
            own, with one tower. None for none.
        chat: the tokenizer's own chat template stands around text and instruction, as a message of
            the user; for vision-language models and others that were trained so.
        drop: probability that a token is left out in training (word dropout, Iyyer et al. 2015,
            section 4); one always stays.

    Raises:
        FileNotFoundError: if there is no such tokenizer.
        ValueError: if ``context_length`` leaves no room for a text, the instruction has several
            ``{}``, the tokenizer has no chat template, or ``drop`` is not a probability.

    Attributes:
        before: ids before every text: the start token, chat template and instruction.
        after: ids after it.
    """

    def __init__(
        self,
        tokenizer: str | TextTokenizer,
        context_length: int,
        drop: float = 0.0,
        fill: bool = False,
        instruction: str | None = None,
        chat: bool = False,
    ) -> None:
        if context_length < 3:
            raise ValueError(f"context_length must be at least 3, got {context_length}")
        self.tokenizer: TextTokenizer = (
            BPETokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        )
        if not 0 <= drop < 1:
            raise ValueError(f"drop must be a probability below 1, got {drop}")
        self.instruction = instruction
        before, _, after = (instruction or "").partition(PLACE)
        if PLACE in after:
            raise ValueError(f"instruction={instruction!r}: expected one {PLACE} at most")
        start, end = (
            [] if token is None else [token] for token in (self.tokenizer.start, self.tokenizer.end)
        )
        if chat:
            before, after = chat_of(self.tokenizer)((before, after))
            start, end = [], []  # the template has its own
        framing = [self.tokenizer.encode(part) for part in (before, after)]
        if (tokens := sum(map(len, framing))) > context_length - 3:
            raise ValueError(
                f"{'chat' if chat else 'instruction'}: its {tokens} tokens leave no room for a "
                f"text in context_length={context_length}"
            )
        self.context_length = context_length
        self.dtype = torch.int64
        self.drop = drop
        self.fill = fill
        self.before, self.after = [*start, *framing[0]], [*framing[1], *end]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the longest text's tensor."""
        return (self.context_length,)

    @property
    def is_random(self) -> bool:
        """Whether draws change the result."""
        return self.drop > 0

    def token_counts(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of texts of ``[N]`` bytes, by a token for every 4 of them: ``[N]``."""
        own = len(self.before) + len(self.after)
        counts = np.minimum(own + -(-lengths // _BYTES), self.context_length)
        return np.where(lengths > 0, self.context_length if self.fill else counts, 0)

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """One text.

        Args:
            value: the text.
            rng: the sample's random choices; None for the whole text.

        Returns:
            int64 ``[T]``, T at most ``context_length``.

        Raises:
            DecodeError: if the value is not a text, or is empty.
        """
        if not isinstance(value, str):
            raise DecodeError("unsupported", f"expected a text, got {type(value).__name__}")
        ids = self._encode(value)
        if not ids:
            raise DecodeError("empty", "the text has no characters")
        if rng is not None and self.drop:
            places = rng.stream("text.drop").random(len(ids))
            last = places.max()  # at least one token stays
            ids = [token for token, u in zip(ids, places, strict=True) if u >= min(self.drop, last)]
        room = self.context_length - len(self.before) - len(self.after)
        return torch.tensor([*self.before, *ids[:room], *self.after])

    def _encode(self, text: str) -> list[int]:
        """Its ids, or the first of them: only the beginning of a long text is tokenized."""
        words = text.split(maxsplit=_WORDS * self.context_length)
        if len(words) > _WORDS * self.context_length:
            ids = self.tokenizer.encode(text[: -len(words[-1])])
            if len(ids) >= _WORDS * self.context_length:  # unless the text has no tokens
                return ids
        return self.tokenizer.encode(text)

    def collate(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The texts padded to the longest (or all), and where they are real: ``[B, T]`` both."""
        ids = torch.nn.utils.rnn.pad_sequence(inputs, True, self.tokenizer.pad)
        if self.fill:
            missing = self.context_length - ids.shape[1]
            ids = torch.nn.functional.pad(ids, (0, missing), value=self.tokenizer.pad)
        lengths = torch.tensor([len(text) for text in inputs])
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]
