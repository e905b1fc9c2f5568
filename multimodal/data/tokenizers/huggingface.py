"""Any tokenizer of ``transformers``; needs the extra ``huggingface``."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from multimodal.core.hf_files import import_transformers
from multimodal.data.shards.paths import resolve

_MARK = "\ue000"  # a text's place: a sign that no text has
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class HuggingFaceTokenizer:
    """A tokenizer of ``transformers``, or a ``tokenizer.json`` file.

    Args:
        name: a folder or a ``tokenizer.json``; or a name on the hub.
        canonical: lower case, without punctuation, white space joined: how SigLIP's texts were
            prepared (Zhai et al. 2023, code of the release).
        offline: takes a name on the hub from its local cache only.

    Raises:
        ImportError: if ``transformers`` is not installed.
        FileNotFoundError: if there is no such tokenizer.
        ValueError: if it frames a text with several tokens on one side.
    """

    def __init__(self, name: str, canonical: bool = False, offline: bool = True) -> None:
        self._tokenizer = _load(name, offline)
        self.canonical = canonical
        bare = self._tokenizer.encode("a", add_special_tokens=False)
        whole = self._tokenizer.encode("a")
        at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        before, after = whole[:at], whole[at + len(bare) :]
        if len(before) > 1 or len(after) > 1:
            raise ValueError(f"{name} frames a text by {before} and {after}: one token each works")
        self.vocab_size = len(self._tokenizer)
        self.start: int | None = before[0] if before else None
        self.end: int | None = after[0] if after else None
        pad = self._tokenizer.pad_token_id
        self.pad: int = 0 if pad is None else pad

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end."""
        if self.canonical:
            text = " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).lower().split())
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of some ids, special tokens left out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def chat(self, words: tuple[str, str], picture: int | None = None) -> tuple[str, str]:
        """What stands around a text, or a picture, in a message of the user, and after that.

        It is the model's own chat template, up to where the assistant would answer.

        Args:
            words: the message's own, before and after the text or picture.
            picture: id of the token that stands for a picture; None for a text.

        Raises:
            ValueError: if the tokenizer has no chat template, or that does not show the text or
                picture once.
        """
        name = self._tokenizer.name_or_path
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"chat: {name or 'this tokenizer'} has no chat template; name the folder or hub "
                "name of a model that has one, or write the words around by hand"
            )
        content: Any = _MARK.join(words)
        mark = _MARK
        if picture is not None:
            mark = self._tokenizer.convert_ids_to_tokens(picture)
            before, after = ([{"type": "text", "text": text}] if text else [] for text in words)
            content = [*before, {"type": "image"}, *after]
        told: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        if told.count(mark) != 1:
            what = "text" if picture is None else f"picture ({mark})"
            raise ValueError(f"chat: the chat template of {name} shows no {what} once: {told!r}")
        start, _, end = told.partition(mark)
        return start, end

    def to_json(self) -> str | None:
        """The file of the ``tokenizers`` library that gives the same ids; None: it has none."""
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        return None if fast is None else str(fast.to_str())


def _load(name: str, offline: bool) -> Any:
    transformers = import_transformers("HuggingFaceTokenizer")
    path = resolve(name)
    if path.suffix == ".json" and path.is_file():
        return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    try:
        here = Path(path).is_dir()
        auto = transformers.AutoTokenizer
        return auto.from_pretrained(
            str(path) if here else name,
            local_files_only=here or offline,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        hint = "; offline=false would ask the hub" if offline else ""
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"no tokenizer {name}: {reason}{hint}") from error
