"""Hard negatives of a text by changing one thing in it, in the seven kinds of SugarCrepe.

Hsieh et al. 2023 (arXiv:2306.14610, Table 1): an object, an attribute or a relation is replaced;
two objects or two attributes change places; an object or an attribute is added. They let a language
model write the sentences; here words of small lists (`lexicon`) are exchanged, which needs no model
and reaches only what the lists hold. A text to which no kind applies has no negative.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from multimodal.data.negatives.lexicon import ATTRIBUTES, DETERMINERS, OBJECTS, RELATIONS
from multimodal.data.sample_rng import SampleRNG

_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
_ATTRIBUTE_WORDS = frozenset(word for group in ATTRIBUTES for word in group)
_OBJECT_WORDS = frozenset(word for group in OBJECTS for word in group)
_VOWELS = tuple("aeiou")


class Word(NamedTuple):
    """A word's place in a text."""

    start: int
    end: int
    text: str


class Edit(NamedTuple):
    """Characters ``start`` to ``end`` of a text become ``text``."""

    start: int
    end: int
    text: str


class Phrases(NamedTuple):
    """The words of a text that may be changed.

    Attributes:
        words: all of them.
        objects: nouns: those of the lists, and what stands after a determiner and its attributes.
        attributes: those of the lists, each before a noun.
    """

    words: list[Word]
    objects: list[Word]
    attributes: list[Word]


def swapped(text: str, kinds: Sequence[str], count: int, rng: SampleRNG, name: str) -> list[str]:
    """At most ``count`` different negatives of a text, of as many kinds as possible.

    Args:
        text: in English.
        kinds: of `KINDS`.
        count: at least 1.
        rng: chooses the order of the kinds, and among a kind's changes.
        name: of the choice.
    """
    phrases = _phrases(text)
    stream = rng.stream(f"{name}.swap")
    changes = []
    for kind in (kinds[place] for place in stream.permutation(len(kinds))):
        options = KINDS[kind](text, phrases)
        changes.append([options[place] for place in stream.permutation(len(options))])
    negatives: dict[str, None] = {}
    for turn in range(max(map(len, changes), default=0)):
        for options in changes:
            if turn < len(options):
                changed = _edited(text, options[turn])
                if changed.lower() != text.lower():
                    negatives[changed] = None
    return list(negatives)[:count]


def _phrases(text: str) -> Phrases:
    words = [Word(m.start(), m.end(), m.group()) for m in _WORD.finditer(text)]
    objects, attributes = [], []
    for place, word in enumerate(words):
        lower = word.text.lower()
        follows = place + 1 < len(words)
        if lower in _ATTRIBUTE_WORDS and follows:
            attributes.append(word)
        elif lower in _OBJECT_WORDS or (place and _opens(words[place - 1]) and _is_noun(lower)):
            objects.append(word)
    return Phrases(words, objects, attributes)


def _opens(word: Word) -> bool:
    """Whether a noun may follow."""
    return word.text.lower() in DETERMINERS or word.text.lower() in _ATTRIBUTE_WORDS


def _is_noun(word: str) -> bool:
    taken = word in DETERMINERS or word in _ATTRIBUTE_WORDS
    return not taken and len(word) > 2 and not any(word in r.split() for g in RELATIONS for r in g)


def _replace(words: Sequence[Word], groups: Sequence[Sequence[str]]) -> list[list[Edit]]:
    """Each word by each other one of its groups."""
    return [
        [Edit(word.start, word.end, _cased(other, word.text))]
        for word in words
        for group in groups
        if word.text.lower() in group
        for other in group
        if other != word.text.lower()
    ]


def _replace_relation(text: str, phrases: Phrases) -> list[list[Edit]]:
    negatives, lower = [], text.lower()
    for group in RELATIONS:
        for relation in group:
            for match in re.finditer(rf"\b{re.escape(relation)}\b", lower):
                covered = any(
                    longer != relation and relation in longer.split() and longer in lower
                    for each in RELATIONS
                    for longer in each
                )
                if not covered:  # the "on" of "on top of"
                    negatives += [
                        [Edit(*match.span(), other)] for other in group if other != relation
                    ]
    return negatives


def _exchange(words: Sequence[Word]) -> list[list[Edit]]:
    """Every two different words in each other's place."""
    return [
        [
            Edit(first.start, first.end, _cased(second.text, first.text)),
            Edit(second.start, second.end, _cased(first.text, second.text)),
        ]
        for place, first in enumerate(words)
        for second in words[place + 1 :]
        if first.text.lower() != second.text.lower() and _is_plural(first) == _is_plural(second)
    ]


def _is_plural(word: Word) -> bool:
    lower = word.text.lower()
    return lower in ("men", "women", "children") or (lower.endswith("s") and lower[-2:] != "ss")


def _add_object(text: str, phrases: Phrases) -> list[list[Edit]]:
    """A noun of another group beside each of the text's."""
    held = {word.text.lower() for word in phrases.objects}
    negatives = []
    for word in phrases.objects:
        for group in OBJECTS:
            for other in group[:3]:
                if not held & set(group) and not other.endswith("s"):
                    article = "an" if other.startswith(_VOWELS) else "a"
                    negatives.append([Edit(word.end, word.end, f" and {article} {other}")])
    return negatives


def _add_attribute(text: str, phrases: Phrases) -> list[list[Edit]]:
    """An attribute before each noun that has none."""
    described = {word.end for word in phrases.attributes}
    return [
        [Edit(word.start, word.start, f"{attribute} ")]
        for word in phrases.objects
        if not any(text[end : word.start].isspace() for end in described if end < word.start)
        for group in ATTRIBUTES[:2]
        for attribute in group
    ]


def _edited(text: str, edits: Sequence[Edit]) -> str:
    """The text with the edits, and with "a" or "an" as the words after them want it."""
    for edit in sorted(edits, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return re.sub(r"\b([Aa])n?(?= +([A-Za-z]))", _article, text)


def _article(match: re.Match[str]) -> str:
    return match[1] + ("n" if match[2].lower() in _VOWELS else "")


def _cased(word: str, like: str) -> str:
    lower = word.lower()
    return lower.capitalize() if like[:1].isupper() else lower


# kind -> (text, its phrases) -> the possible changes
KINDS: dict[str, Callable[[str, Phrases], list[list[Edit]]]] = {
    "replace_object": lambda _, phrases: _replace(phrases.objects, OBJECTS),
    "replace_attribute": lambda _, phrases: _replace(phrases.attributes, ATTRIBUTES),
    "replace_relation": _replace_relation,
    "swap_object": lambda _, phrases: _exchange(phrases.objects),
    "swap_attribute": lambda _, phrases: _exchange(phrases.attributes),
    "add_object": _add_object,
    "add_attribute": _add_attribute,
}
