"""Queries: texts, files and rows of a table, added and subtracted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    words: Any,
    modality: str | None = None,
    rate_hz: float | None = None,
    limits: Limits | None = None,
) -> list[QueryTerm]:
    """Terms from what was typed: a text, a file's path, a block ``{value, weight}``, or a list.

    An item of a list may begin with ``+`` or ``-``. What names a file that is there is that file;
    what looks like one and is not there is refused. Numbers and truth values, as YAML makes them
    of words, are texts.

    Args:
        words: the query.
        modality: of the files; None infers it from their extension.
        rate_hz: of arrays that are signals.
        limits: sizes that are decoded.

    Raises:
        ValueError: if given an empty query, an item of another kind, or a file that is not there.
        DecodeError: if a file is not what its extension says.
    """
    if not isinstance(words, list | tuple):
        words = [words] if isinstance(words, Mapping) else [{"value": words}]
    terms = []
    for entry in words:
        block = dict(entry) if isinstance(entry, Mapping) else {"value": _signed(entry)[1]}
        if set(block) - {"value", "weight"} or not _text(block.get("value")):
            raise ValueError(f"query: expected a text, a file or {{value, weight}}; got {entry!r}")
        sign = 1.0 if isinstance(entry, Mapping) else _signed(entry)[0]
        weight = sign * _weight(block.get("weight", 1.0))
        terms.append(_term(_text(block["value"]), weight, modality, rate_hz, limits or Limits()))
    if not terms:
        raise ValueError("query: expected at least one text or file")
    return terms


def _text(value: Any) -> str:
    """What was written; "" if it is not text."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _signed(item: Any) -> tuple[float, str]:
    """The sign and the rest of an item of a list."""
    text = _text(item)
    return (-1.0 if text[:1] == "-" else 1.0, text[1:] if text[:1] in ("+", "-") else text)


def _weight(given: Any) -> float:
    try:
        weight = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        weight = math.nan
    if not math.isfinite(weight) or weight == 0:
        raise ValueError(f"query: weight={given}: expected a number other than 0")
    return weight


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
    embedder: Embedder,
    terms: Sequence[QueryTerm],
    rows: Sequence[tuple[Vectors, float]] = (),
    joint: bool = False,
) -> Vectors:
    """The query's embedding ``[D]`` float32, of unit norm.

    Args:
        embedder: of the model that made the table.
        terms: to embed.
        rows: embeddings that are there already, with their weights.
        joint: the terms are one input of the model's joint embedding, and not a sum.

    Raises:
        ValueError: if given a modality that the model does not take, or terms that cancel out; if
            ``joint``, modalities that it has no joint embedding of, one of them twice, or a weight.
        DecodeError: if given a value that its transform does not take.
    """
    if joint:
        together = {term.modality: [term.value] for term in terms}
        if rows or len(together) < len(terms) or any(term.weight != 1 for term in terms):
            raise ValueError(
                "joint: expected one input of each modality, without weights or rows of the table"
            )
        return embedder.joint_values(together)[0].float().numpy()
    parts = [(embedder.values(term.modality, [term.value])[0], term.weight) for term in terms]
    parts += [(torch.from_numpy(np.asarray(vector)), weight) for vector, weight in rows]
    return combine(parts).float().numpy()
