"""The texts that a sample's JSON holds, and which of them is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG

T = TypeVar("T")


def require_object(decoded: Any) -> None:
    """Refuses JSON that is not an object.

    Raises:
        DecodeError: with the reason ``metadata``.
    """
    if not isinstance(decoded, dict):
        raise DecodeError("metadata", f"expected a JSON object, got {type(decoded).__name__}")


def get_key(metadata: Any, key: str) -> Any:
    """The value under a key of a JSON object.

    Raises:
        DecodeError: if it is not an object, or has no such value.
    """
    require_object(metadata)
    if metadata.get(key) is None:
        raise DecodeError("metadata", f"the JSON has no {key!r}")
    return metadata[key]


def choose(options: Sequence[T], rng: SampleRNG | None, name: str) -> T:
    """One of the options; without a draw the first."""
    return options[0 if rng is None else rng.pick(name, len(options))]


def texts_of(metadata: Any, key: str) -> list[str]:
    """The texts under a key that are not blank.

    Raises:
        DecodeError: if there are none, or something else is there.
    """
    value = get_key(metadata, key)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DecodeError("metadata", f"{key!r} must be a text or a list of texts, is {value!r}")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DecodeError("empty", f"{key!r} holds no text")
    return texts


def draw_text(key: str, weights: Any, value: Any, rng: SampleRNG | None, name: str) -> str:
    """One of a sample's texts; without a draw the first.

    Args:
        key: of the texts in the JSON.
        weights: how likely each is, by its place, or the key of such a list; None for all alike.
        value: the JSON.
        rng: the sample's random choices.
        name: of the choice.

    Raises:
        DecodeError: if there is no text, or not a weight for each.
    """
    if weights is None or rng is None:
        return choose(texts_of(value, key), rng, name)
    texts = get_key(value, key)
    texts = [texts] if isinstance(texts, str) else texts
    if isinstance(weights, str):
        weights = get_key(value, weights)
    numbers = isinstance(weights, list | tuple) and all(
        isinstance(w, int | float) and not isinstance(w, bool) and 0 <= w < float("inf")
        for w in weights
    )
    if not numbers or len(weights) != len(texts):
        detail = f"expected {len(texts)} weights from 0, one for each text, got {weights!r}"
        raise DecodeError("metadata", detail)
    texts_of(value, key)  # are texts
    drawn = [(text, w) for text, w in zip(texts, weights, strict=True) if w and text.strip()]
    if not drawn:
        raise DecodeError("empty", f"{key!r} holds no text with a weight above 0")
    bounds = np.cumsum([weight for _, weight in drawn])
    place = np.searchsorted(bounds, rng.stream(name).random() * bounds[-1], side="right")
    text: str = drawn[min(int(place), len(drawn) - 1)][0]
    return text
