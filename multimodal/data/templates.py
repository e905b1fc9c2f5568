"""Texts made of a sample's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any

from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG


class Template:
    """A text with ``{key}`` where the value of a key of the sample's JSON goes.

    A list of texts is joined by commas. Where a draw is given it is shuffled before, and cut to a
    random length of at least one, so that training seldom reads the same caption twice.

    Args:
        text: such as ``{name}, {tags}``.

    Raises:
        ValueError: if there is no ``{key}`` in it, or something else than a key in the braces.
    """

    def __init__(self, text: str) -> None:
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"template {text!r}: {error}") from error
        self.keys = tuple(key for _, key, _, _ in parts if key is not None)
        plain = all(key.isidentifier() for key in self.keys)
        bare = not any(format_ or conversion for _, _, format_, conversion in parts)
        if not (self.keys and plain and bare):
            raise ValueError(f"template {text!r}: expected at least one {{key}}, and only names")
        self.text = text

    def fill(self, metadata: Mapping[str, Any], rng: SampleRNG | None, name: str) -> str:
        """The text of one sample.

        Args:
            metadata: its JSON.
            rng: for the order and number of a list's items; None for all of them, in order.
            name: of the draw's stream.

        Raises:
            DecodeError: if a key is missing or holds neither texts nor numbers, or all are empty.
        """
        values = {key: _value(metadata, key, rng, f"{name}.{key}") for key in self.keys}
        if not any(values.values()):
            raise DecodeError("empty", f"{self.text!r} holds no text: {', '.join(self.keys)}")
        return self.text.format(**values).strip(" ,")


def _value(metadata: Mapping[str, Any], key: str, rng: SampleRNG | None, name: str) -> str:
    value = metadata.get(key)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        items = [item.strip() for item in value if item.strip()]
        if rng is not None and items:
            random = rng.stream(name)
            kept = random.permutation(len(items))[: random.integers(1, len(items) + 1)]
            items = [items[place] for place in kept]
        return ", ".join(items)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value).strip()
    raise DecodeError("metadata", f"{key!r} must be a text, a number or texts, is {value!r}")
