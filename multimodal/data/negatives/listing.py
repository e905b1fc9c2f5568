"""What a source says of a modality's listed negatives, and which of them a use of a sample gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from multimodal.core.suggest import suggest
from multimodal.data.decoding.decode import Value
from multimodal.data.errors import DecodeError
from multimodal.data.negatives.swaps import KINDS
from multimodal.data.sample_rng import SampleRNG

T = TypeVar("T")
_KEYS = ("key", "samples", "member", "table", "swap", "count")
_ORIGINS = _KEYS[:-1]


class ListedValue(NamedTuple):
    """A negative that a sample lists.

    Attributes:
        value: as the modality's own, before its transform.
        sample_id: another sample's, or a hash of the owner's and the place in its list.
        positive_key: likewise.
        rng: the random choices of its transform.
    """

    value: Value
    sample_id: int
    positive_key: int
    rng: SampleRNG


@dataclass(frozen=True, slots=True)
class Listing:
    """Where the listed negatives of a modality are; one of the first five is set.

    Attributes:
        key: of the sample's JSON, under which texts are.
        samples: of the sample's JSON, under which keys of samples of the same source are.
        members: of the sample, files of the modality.
        table: path of what `multimodal mine` writes.
        swap: kinds of word swaps that make negatives of the sample's text.
        count: most negatives of one use of a sample; of more, as many are drawn.
    """

    key: str | None = None
    samples: str | None = None
    members: tuple[str, ...] = ()
    table: str | None = None
    swap: tuple[str, ...] = ()
    count: int = 1

    @property
    def other_samples(self) -> bool:
        """Whether the negatives are other samples of the source."""
        return self.samples is not None or self.table is not None


def parse_listing(name: str, entry: Any, is_text: bool) -> Listing:
    """A modality's ``negatives``.

    Args:
        name: of the modality.
        entry: the block: ``count``, and one of ``key``, ``samples``, ``member``, ``table``,
            ``swap``.
        is_text: whether the modality's values are texts.

    Raises:
        ValueError: if it contradicts itself.
    """
    where = f"modality {name!r}: negatives"
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"{where}: expected a block with one of {', '.join(_ORIGINS)}, got {entry!r}"
        )
    given = {key: value for key, value in entry.items() if value is not None}
    for key in given:
        if key not in _KEYS:
            raise ValueError(f"{where}: {key!r}; {suggest(key, _KEYS)}")
    origins = [key for key in _ORIGINS if key in given]
    if len(origins) != 1:
        raise ValueError(
            f"{where}: expected one of {', '.join(_ORIGINS)}, got {', '.join(origins) or 'none'}"
        )
    count = given.get("count", 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{where}: count must be an integer of at least 1, got {count!r}")
    if origins[0] in ("key", "swap") and not is_text:
        raise ValueError(f"{where}: {origins[0]} gives texts, which this modality does not hold")
    swap = _names(given.get("swap"))
    for kind in swap:
        if kind not in KINDS:
            raise ValueError(f"{where}: swap {kind!r}; {suggest(kind, KINDS)}")
    return Listing(
        given.get("key"),
        given.get("samples"),
        _names(given.get("member")),
        given.get("table"),
        swap,
        count,
    )


def texts_under(metadata: Mapping[str, Any], key: str) -> list[str]:
    """The texts, or the keys of samples, that a sample lists; none where it has no such key.

    Raises:
        DecodeError: if something else is there.
    """
    value = metadata.get(key)
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DecodeError(
            "metadata", f"negatives under {key!r} must be a text or a list of texts, got {value!r}"
        )
    return [text for text in texts if text.strip()]


def draw(options: Sequence[T], count: int, rng: SampleRNG, name: str) -> list[tuple[int, T]]:
    """At most ``count`` different options with their places, in the order of the list."""
    if len(options) <= count:
        return list(enumerate(options))
    places = rng.stream(f"{name}.negatives").permutation(len(options))[:count]
    return [(place, options[place]) for place in sorted(places.tolist())]


def _names(given: Any) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())
