"""CLIP's byte-pair encoding, with ids identical to those of its original tokenizer.

Source: Radford et al. 2021, section 2.4, and the tokenizer of the release, whose behaviour on the
texts of ``tests/vectors/clip_tokens.json`` is reproduced to the id.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
from pathlib import Path

import ftfy
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from multimodal.data.shards.paths import resolve
from multimodal.data.tokenizers.bpe import END, START

FILE = "bpe_simple_vocab_16e6.txt.gz"
PACKAGES = ("open_clip", "clip")  # that carry the file
REPOSITORY = "openai/clip-vit-base-patch32"  # of the hub; its merges.txt has the same merges
HUB = "hub://"
NUM_MERGES = 49152 - 256 - 2
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class CLIPTokenizer:
    """CLIP's tokenizer.

    Texts are repaired (ftfy), HTML entities resolved, white space joined, lower-cased. A text that
    spells a special token gets it, as in CLIP.

    Args:
        vocabulary: ``bpe_simple_vocab_16e6.txt.gz`` or the ``merges.txt`` of ``transformers``;
            ``hub://OWNER/NAME`` fetches the latter from the hub. None takes the file from an
            installed package that carries it (open_clip_torch, clip-anytorch), or else what an
            earlier download from the hub has left in its cache.

    Raises:
        FileNotFoundError: if it is in none of these places; the message lists them.
        ValueError: if the file is not such a vocabulary.
    """

    def __init__(self, vocabulary: str | None = None) -> None:
        path = find_vocabulary(vocabulary)
        merges = _merges(path)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte_order)
        words = [*alphabet, *(letter + "</w>" for letter in alphabet)]
        words += ["".join(merge) for merge in merges]
        ids = {word: number for number, word in enumerate([*words, START, END])}
        model = models.BPE(ids, merges, end_of_word_suffix="</w>")
        self._tokenizer = Tokenizer(model)
        self._tokenizer.add_special_tokens([START, END])
        self._tokenizer.normalizer = normalizers.Lowercase()
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self.vocab_size = len(ids)
        self.start: int | None = ids[START]
        self.end: int | None = ids[END]
        self.pad = 0  # CLIP's padding is not marked: its text tower reads up to the end token

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end."""
        clean = html.unescape(html.unescape(ftfy.fix_text(text)))
        clean = " ".join(clean.split())
        ids: list[int] = self._tokenizer.encode(clean, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of some ids, special tokens left out."""
        text: str = self._tokenizer.decode(ids)
        return text

    def to_json(self) -> str:
        """The file of the ``tokenizers`` library that gives the same ids, of repaired texts."""
        return str(self._tokenizer.to_str())


def _byte_order(letter: str) -> tuple[bool, int]:
    """The order of CLIP's alphabet: bytes that stand for themselves, then the others."""
    return ord(letter) > 255, ord(letter)


def find_vocabulary(vocabulary: str | None) -> Path:
    """The file that ``vocabulary`` names, or the first there is.

    Raises:
        FileNotFoundError: if there is none; the message lists the searched places and the three
            ways to provide it.
    """
    if vocabulary is not None and not vocabulary.startswith(HUB):
        path = resolve(vocabulary)
        if not path.is_file():
            raise FileNotFoundError(
                f"no vocabulary {vocabulary} (looked at {path}). {vocabulary_help()}"
            )
        return path
    if vocabulary is not None:
        return _from_hub(vocabulary.removeprefix(HUB), only_cached=False)
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / FILE).is_file():
                return Path(folder) / FILE
    return _from_hub(REPOSITORY, only_cached=True)


def vocabulary_help() -> str:
    """How to provide CLIP's vocabulary."""
    return (
        "CLIP's vocabulary comes from (1) a local file, vocabulary=PATH, of "
        f"{FILE} or transformers' merges.txt; (2) an installed package that carries it "
        "(pip install open_clip_torch --no-deps); (3) the hub, "
        f"vocabulary={HUB}{REPOSITORY} (pip install 'multimodal[huggingface]')"
    )


def _from_hub(repository: str, only_cached: bool) -> Path:
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repository, "merges.txt", local_files_only=only_cached))
    except Exception as error:  # not installed, not reachable, not there: many kinds
        where = "cached from the hub" if only_cached else f"in {repository} of the hub"
        reason = type(error).__name__
        raise FileNotFoundError(f"no vocabulary {where} ({reason}). {vocabulary_help()}") from error


def _merges(path: Path) -> list[tuple[str, str]]:
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a vocabulary of CLIP: {error}") from error
    lines = text.split("\n")[1 : NUM_MERGES + 1]  # the first says the version
    merges = [tuple(line.split()) for line in lines]
    if len(merges) < NUM_MERGES or any(len(merge) != 2 for merge in merges):
        raise ValueError(f"{path} is not a vocabulary of CLIP: {NUM_MERGES} merges were expected")
    return [(first, second) for first, second in merges]
