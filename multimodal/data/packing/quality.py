"""Statistics of a data set: lengths and repeats of texts, coverage, balance, near-duplicates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multimodal.core.hashing import stable_hash

_BANDS = 4  # of 16 bits: hashes that differ in up to 3 bits have one in common
_CLOSE = 3  # bits in which the hashes of near-duplicates differ at most
_CROWD = 200  # samples with one band in common that are compared pair by pair
_COUNTS = ("members", "labels", "contents")
_LONG = 100_000  # characters of a text that is worth a line
_MOST_COMMON = 20  # repeated texts and classes that a report lists


@dataclass(slots=True)
class Quality:
    """Statistics of each sample; a few dozen bytes.

    Attributes:
        samples: their number.
        members: how many samples have each member.
        lengths: of each member or key with texts, words of them, by how many texts have them.
        texts: of each, how often there is a text, in lower case.
        captions: members and keys whose texts are captions, however short.
        longest: characters of the longest text, and its sample.
        labels: values of the label's key, if one was named.
        pictures: key and 64-bit difference hash of each picture.
        contents: how often there is a member with these bytes, by their hash.
    """

    samples: int = 0
    members: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    texts: dict[str, Counter[str]] = field(default_factory=dict)
    captions: set[str] = field(default_factory=set)
    longest: tuple[int, str] = (0, "")
    labels: Counter[str] = field(default_factory=Counter)
    pictures: list[tuple[str, int]] = field(default_factory=list)
    contents: Counter[int] = field(default_factory=Counter)

    def add(
        self,
        key: str,
        members: Mapping[str, bytes],
        values: Mapping[str, Any],
        metadata: Mapping[str, Any],
        label: str | None,
        captions: Iterable[str] = (),
    ) -> None:
        """Adds one sample.

        Args:
            key: of the sample.
            members: their bytes.
            values: what they decode to.
            metadata: of the sample.
            label: key of the metadata whose values are counted.
            captions: keys of the metadata that hold its texts.
        """
        self.samples += 1
        self.members.update(members.keys())
        for name, data in members.items():
            self.contents[stable_hash(name, data)] += 1
            value = values[name]
            if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
                self.pictures.append((key, difference_hash(value)))
        written = {name: value for name, value in values.items() if isinstance(value, str)}
        self.captions.update(written, captions)
        for name, texts in (written | dict(metadata)).items():
            for text in texts if isinstance(texts, list) else [texts]:
                if isinstance(text, str):
                    self._add_text(key, name, text)
        if label is not None:
            self.labels[str(metadata.get(label))] += 1

    def _add_text(self, key: str, name: str, text: str) -> None:
        words = text.split()
        self.lengths.setdefault(name, Counter())[len(words)] += 1
        self.texts.setdefault(name, Counter())[" ".join(words).lower()[:_LONG]] += 1
        self.longest = max(self.longest, (len(text), key))

    def merge(self, other: Quality) -> None:
        """Merges another instance."""
        self.samples += other.samples
        self.pictures += other.pictures
        self.captions |= other.captions
        self.longest = max(self.longest, other.longest)
        for name in other.texts:
            self.lengths.setdefault(name, Counter()).update(other.lengths[name])
            self.texts.setdefault(name, Counter()).update(other.texts[name])
        for name in _COUNTS:
            getattr(self, name).update(getattr(other, name))

    def as_plain(self) -> dict[str, Any]:
        """Lists that JSON can hold; ``from_plain`` makes it again."""
        counts = {name: list(getattr(self, name).items()) for name in _COUNTS}
        texts = {
            name: [list(self.lengths[name].items()), list(self.texts[name].items())]
            for name in self.texts
        }
        return {
            "samples": self.samples,
            "pictures": self.pictures,
            "texts": texts,
            "captions": sorted(self.captions),
            "longest": list(self.longest),
            **counts,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Quality:
        """What ``as_plain`` was made of."""
        counts = {name: Counter(dict(plain[name])) for name in _COUNTS}
        pictures = [(key, code) for key, code in plain["pictures"]]
        texts = plain["texts"].items()
        return cls(
            samples=plain["samples"],
            pictures=pictures,
            lengths={name: Counter(dict(lengths)) for name, (lengths, _) in texts},
            texts={name: Counter(dict(occurrences)) for name, (_, occurrences) in texts},
            captions=set(plain["captions"]),
            longest=(plain["longest"][0], plain["longest"][1]),
            **counts,
        )

    def report(self) -> dict[str, Any]:
        """Plain values: counts, shares and examples."""
        near = near_duplicates(self.pictures)
        # Where nothing says what the captions are: the keys that hold texts of several words.
        named = self.captions or {n for n, c in self.lengths.items() if any(w > 1 for w in c)}
        lengths, texts = Counter[int](), Counter[str]()
        for name in named & self.texts.keys():
            lengths.update(self.lengths[name])
            texts.update(self.texts[name])
        words = np.repeat(list(lengths), list(lengths.values())) if lengths else None
        repeated = sum(count - 1 for count in texts.values())
        return {
            "samples": self.samples,
            "coverage": {
                name: round(count / max(1, self.samples), 4)
                for name, count in sorted(self.members.items())
            },
            "exact_copies": sum(count - 1 for count in self.contents.values()),
            "near_duplicate_pictures": {
                "pairs": len(near),
                "examples": [list(pair) for pair in near[:_MOST_COMMON]],
            },
            "texts": {
                "count": texts.total(),
                "words": None
                if words is None
                else {
                    name: float(np.quantile(words, q))
                    for name, q in (("min", 0), ("median", 0.5), ("p95", 0.95), ("max", 1))
                },
                "repeated": repeated,
                "longest": list(self.longest) if self.longest[0] > _LONG else None,
                "most_common": [pair for pair in texts.most_common(_MOST_COMMON) if pair[1] > 1],
            },
            "classes": {
                "count": len(self.labels),
                "largest": self.labels.most_common(_MOST_COMMON),
                "smallest": self.labels.most_common()[: -_MOST_COMMON - 1 : -1],
                # 1 for classes of one size, 1 / their number where one has it all
                "balance": _balance(self.labels),
            }
            if self.labels
            else None,
        }


def _balance(counts: Counter[str]) -> float:
    shares = np.array(list(counts.values()), np.float64) / counts.total()
    return float(np.exp(-(shares * np.log(shares)).sum()) / len(shares))


def difference_hash(picture: NDArray[np.uint8]) -> int:
    """64 bits: is each of 8 x 8 places of a tiny grey picture brighter than its left neighbour?

    Survives scaling, recompression and changes of brightness.
    """
    tiny = np.asarray(Image.fromarray(picture).convert("L").resize((9, 8)), np.int16)
    return int.from_bytes(np.packbits(tiny[:, 1:] > tiny[:, :-1]).tobytes(), "big")


def near_duplicates(pictures: Iterable[tuple[str, int]]) -> list[tuple[str, str]]:
    """Pairs of keys whose hashes differ in at most 3 of 64 bits.

    Of many pictures with one and the same 16 bits in one place (blank ones, say) only the first
    200 are compared.
    """
    groups: dict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
    for key, code in pictures:
        for band in range(_BANDS):
            group = groups[band, code >> 16 * band & 0xFFFF]
            if len(group) < _CROWD:
                group.append((key, code))
    pairs = {
        (a, b)
        for group in groups.values()
        for at, (a, first) in enumerate(group)
        for b, second in group[at + 1 :]
        if a != b and (first ^ second).bit_count() <= _CLOSE
    }
    return sorted(pairs)
