"""Queries: texts, files and rows of a table, added and subtracted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multimodal.data.decoding.decode import Limits
from multimodal.inference.combine import combine
from multimodal.inference.embedder import Embedder
from multimodal.inference.search.items import ARRAYS, MODALITIES, extension, from_bytes
from multimodal.inference.search.table import Vectors


@dataclass(frozen=True, slots=True)
class QueryTerm:
    """A value of one modality and its weight in the query; below 0 it is subtracted."""

    modality: str
    value: Any
    weight: float = 1.0


def parse(
    words: str | Sequence[Any],
    modality: str | None = None,
    rate_hz: float | None = None,
    limits: Limits | None = None,
) -> list[QueryTerm]:
    """Terms from what was typed: a text, a file's path, or a list of them.

    An item of a list may begin with ``+`` or ``-``, or be a block ``{value, weight}``. What names
    a file that is there is that file; what looks like one and is not there is refused.

    Args:
        words: the query.
        modality: of the files; None infers it from their extension.
        rate_hz: of arrays that are signals.
        limits: sizes that are decoded.

    Raises:
        ValueError: if given an empty query, or a file that is not there.
        DecodeError: if a file is not what its extension says.
    """
    listed = [words] if isinstance(words, str) else list(words)
    terms = []
    for entry in listed:
        block = dict(entry) if not isinstance(entry, str) else {"value": entry}
        unknown = sorted(set(block) - {"value", "weight"})
        text = str(block.get("value", "")).strip()
        if unknown or not text:
            raise ValueError(f"query: expected a text, a file or {{value, weight}}; got {entry!r}")
        weight = float(block.get("weight", 1.0))
        if not isinstance(words, str) and text[0] in "+-":
            weight, text = weight * (-1 if text[0] == "-" else 1), text[1:].strip()
        terms.append(_term(text, weight, modality, rate_hz, limits or Limits()))
    if not terms:
        raise ValueError("query: expected at least one text or file")
    return terms


def _term(
    text: str, weight: float, modality: str | None, rate_hz: float | None, limits: Limits
) -> QueryTerm:
    path = Path(text).expanduser()
    looks_like_a_file = " " not in text and extension(text) in {*MODALITIES, *ARRAYS}
    if len(text) < 1024 and path.is_file():
        kind, value = from_bytes(path.name, path.read_bytes(), modality, rate_hz, limits)
        return QueryTerm(kind, value, weight)
    if looks_like_a_file and "." in text:
        raise ValueError(f"query: there is no file {text}")
    return QueryTerm("text", text, weight)


def embed(
    embedder: Embedder, terms: Sequence[QueryTerm], rows: Sequence[tuple[Vectors, float]] = ()
) -> Vectors:
    """The query's embedding ``[D]`` float32, of unit norm.

    Args:
        embedder: of the model that made the table.
        terms: to embed.
        rows: embeddings that are there already, with their weights.

    Raises:
        ValueError: if given a modality that the model does not take, or terms that cancel out.
        DecodeError: if given a value that its transform does not take.
    """
    parts = [(embedder.values(term.modality, [term.value])[0], term.weight) for term in terms]
    parts += [(torch.from_numpy(np.asarray(vector)), weight) for vector, weight in rows]
    return combine(parts).float().numpy()
