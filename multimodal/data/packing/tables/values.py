"""Cells of tables as metadata: what JSON can hold, and missing values."""

from __future__ import annotations

import ast
import io
import json
import math
import tokenize
from collections.abc import Mapping
from typing import Any

from multimodal.core.strict_json import excerpt
from multimodal.data.packing.keys import printable

_LONGEST_LITERAL = 1 << 16  # characters of a list as Python writes it
# Columns and keys that hold captions, by their names in small letters without underscores.
_CAPTIONS = frozenset(
    (
        "alttext", "caption", "captions", "comment", "description", "prompt", "raw", "sentence",
        "sentences", "text", "texts", "title", "transcript", "transcription", "transcripts",
        "utterance",
    )
)  # fmt: skip


def is_caption_name(name: str) -> bool:
    """Whether a column or key of this name holds captions."""
    return name.lower().replace("_", "").replace("-", "").strip() in _CAPTIONS


def plain(value: Any) -> Any:
    """A value as JSON can hold it: NaN and infinity become None, texts whole Unicode.

    Raises:
        ValueError: if it is, or holds, bytes.
    """
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, bytes | bytearray | memoryview):
        raise ValueError("bytes")
    return str(value)  # dates, decimals and the like


def is_nothing(value: Any) -> bool:
    """Whether a value says nothing: null, NaN, a blank text, or a list of only these."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, list | tuple):
        return all(is_nothing(each) for each in value)
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def without_nothings(value: Any) -> Any:
    """A list of texts without the blank ones; anything else as it is."""
    if isinstance(value, list) and any(isinstance(each, str) for each in value):
        return [each for each in value if not is_nothing(each)]
    return value


def texts_in(cell: str) -> list[str] | None:
    """The texts of a list that is written in a cell, as JSON or as Python writes it; else None.

    ``["a dog", "a hound"]``, ``['a dog', "a dog's nose"]``; not numpy's ``['a dog' 'a hound']``.
    """
    cell = cell.strip()
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        texts = json.loads(cell)
    except (ValueError, RecursionError):
        if len(cell) > _LONGEST_LITERAL:
            return None
        try:
            texts = ast.literal_eval(cell)
            tokens = list(tokenize.generate_tokens(io.StringIO(cell).readline))
        except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
            return None
        strings = sum(token.type == tokenize.STRING for token in tokens)
        if not isinstance(texts, list) or strings != len(texts):  # two side by side become one
            return None
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        return None
    return texts


def text_fault(value: Any) -> str | None:
    """Why a value is not a caption; None if it is a text, or a list of texts."""
    if isinstance(value, float) and math.isnan(value):
        return "is NaN"
    if value is None:
        return "is null"
    if is_nothing(value):
        return "is blank" if isinstance(value, str) else "holds no text"
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        return f"is not a text: {excerpt(value)}"
    return None
