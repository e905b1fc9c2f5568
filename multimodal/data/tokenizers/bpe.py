"""Byte-pair encoding: train a vocabulary, load one. The only user of the tokenizers library."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from multimodal.data.shards.paths import resolve

PAD, START, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
# Of letters, case, spacing, digits, marks and other scripts, which tokenizers treat differently.
PROBES = (
    "A photo of 3 dogs, isn't it?",
    "  two\tSPACES  ",
    "Ünïcode — naïve_café",
    "日本 🙂 &amp;",
)


class TextTokenizer(Protocol):
    """What ``TextTransform`` asks of a tokenizer.

    Attributes:
        vocab_size: one more than the highest id.
        start: id put before every text, None for none.
        end: id put after every text, None for none.
        pad: id that fills up.
    """

    vocab_size: int
    start: int | None
    end: int | None
    pad: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of some ids, special tokens left out."""
        ...


def fingerprint(tokenizer: TextTokenizer) -> str:
    """16 hexadecimal digits, equal for tokenizers that give the same ids, whatever their paths.

    Computed from a tokenizer's behaviour: its special ids, the text of every id (of 65,536 evenly
    spaced ones, where there are more), and the ids of some texts.
    """
    step = 1 + tokenizer.vocab_size // 65_536
    words = [tokenizer.decode([number]) for number in range(0, tokenizer.vocab_size, step)]
    texts = [tokenizer.encode(text) for text in PROBES]
    ends = (tokenizer.vocab_size, tokenizer.start, tokenizer.end, tokenizer.pad)
    return hashlib.sha256(repr((ends, words, texts)).encode()).hexdigest()[:16]


class BPETokenizer:
    """A tokenizer of ``train_bpe``.

    Args:
        path: its JSON file; ``samples://NAME`` for one of the sample corpus.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a tokenizer, or lacks the start and end tokens.
    """

    def __init__(self, path: str) -> None:
        self._tokenizer = load_tokenizer(path)
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.start: int | None = self._tokenizer.token_to_id(START)
        self.end: int | None = self._tokenizer.token_to_id(END)
        self.pad = 0

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of some ids, special tokens left out."""
        text: str = self._tokenizer.decode(ids)
        return text

    def to_json(self) -> str:
        """The file of the ``tokenizers`` library that gives the same ids."""
        return str(self._tokenizer.to_str())


def train_bpe(texts: Iterable[str], vocab_size: int, min_frequency: int = 2) -> Tokenizer:
    """Trains a byte-level BPE tokenizer (Sennrich et al. 2016; bytes as in GPT-2).

    Texts are lower-cased, put in Unicode's NFC form, and runs of white space become one space, so
    case and spacing do not survive a round trip; every other text does, as bytes have no unknowns.
    Encoding puts the start token before a text and the end token after it. The same texts give the
    same vocabulary, whatever their order.

    Args:
        texts: the training texts.
        vocab_size: most entries, the special tokens included; fewer result when no pair of tokens
            is left that occurs ``min_frequency`` times.
        min_frequency: a pair of tokens must occur this often to be merged into one.

    Returns:
        A tokenizer whose padding token has id 0, and whose start and end tokens have the last two.

    Raises:
        ValueError: if ``vocab_size`` cannot hold the 256 bytes and the three special tokens.
    """
    smallest = 256 + 3
    if vocab_size < smallest:
        raise ValueError(f"vocab_size={vocab_size}: at least {smallest} (256 bytes, 3 specials)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Strip(content=" ", left=1, right=0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=min_frequency,
        special_tokens=[PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.add_special_tokens([START, END])
    tokenizer.encode_special_tokens = True  # a text that spells a special token is only text
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads a ``tokenizers`` JSON file that has CLIP's start and end tokens.

    Args:
        path: a file path or ``samples://NAME``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a tokenizer, or lacks the start and end tokens.
    """
    file = resolve(path)
    if not file.is_file():
        raise FileNotFoundError(f"no tokenizer file {path} (looked at {file})")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a tokenizers JSON file: {error}") from error
    missing = [token for token in (START, END) if tokenizer.token_to_id(token) is None]
    if missing:
        raise ValueError(f"the tokenizer {path} has no token {' and no '.join(missing)}")
    tokenizer.encode_special_tokens = True  # not kept in the file
    return tokenizer
