"""Which part of a file's name is its sample's, and which names the member.

``t1.gps.npy`` beside ``t1.jpg`` is the member ``gps.npy`` of ``t1``; ``Track 2.1 (Clean).wav`` is
a ``wav`` whose sample has a dot in its name. What tells them apart is that members have the same
names in many samples.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from multimodal.data.shards.formats import BY_EXTENSION, KINDS

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_MOST = 0.8  # of the samples that have a member of this name, or another member beside it
_TEXTS = ("text", "json")


class Split(NamedTuple):
    """A file's name in two: the sample's, with its folder, and the member's."""

    sample: str
    member: str


class MemberNames:
    """The names of members that a set of files has.

    Args:
        names: of all files, with their folders.
        given: by the user: those that have more than an extension are taken as they are, and
            nothing else is inferred.
        expected: names that are members if they occur.
    """

    def __init__(
        self, names: Iterable[str], given: Sequence[str] = (), expected: Sequence[str] = ()
    ) -> None:
        self._given = sorted((name.lower() for name in given), key=len, reverse=True)
        self._known = frozenset(() if given else {*_inferred(names), *expected})

    def split(self, name: str) -> Split | None:
        """The two parts of a file's name; None if it has no extension."""
        folder, slash, base = name.rpartition("/")
        lower = base.lower()
        for member in self._given:
            if lower.endswith(f".{member}") and len(lower) > len(member) + 1:
                return Split(folder + slash + base[: -len(member) - 1], member)
        stem, _, extension = base.rpartition(".")
        if not stem or not extension or re.search(r"\s", extension):
            return None
        front, _, middle = stem.rpartition(".")
        member = f"{middle}.{extension.lower()}"
        if front and not self._given and (middle in KINDS or member in self._known):
            return Split(folder + slash + front, member)
        return Split(folder + slash + stem, extension.lower())


def makes_sense(member: str, samples: int, of: int) -> bool:
    """Whether the name of a member, as the first dot of a tar's name makes it, is one.

    Args:
        member: ``jpg``, ``depth.png``, or what stood behind the dot of a file's name.
        samples: how many have a member of this name.
        of: how many there are.
    """
    *parts, extension = member.split(".")
    if not re.fullmatch(r"[\w-]{1,16}", extension):
        return False
    if all(_WORD.fullmatch(part) for part in parts):
        return True
    # Numbered ones: 0.jpg, 1.jpg in many samples; not 01.05.jpg, of a date.
    return len(parts) == 1 and parts[0].isdigit() and samples >= max(2, of / 100)


def _inferred(names: Iterable[str]) -> set[str]:
    """Names like ``gps.npy`` that are in most samples, or beside other members in theirs."""
    holders: dict[str, set[str]] = defaultdict(set)  # member -> names up to the last dot but one
    extensions: dict[str, set[str]] = defaultdict(set)  # middle -> those that follow it
    plain, long = set(), set()  # names up to the last dot: all, those with a middle
    for name in names:
        folder, slash, base = name.rpartition("/")
        stem, _, extension = base.rpartition(".")
        plain.add(folder + slash + stem)
        front, _, middle = stem.rpartition(".")
        if front and _WORD.fullmatch(middle):
            long.add(folder + slash + stem)
            holders[f"{middle}.{extension.lower()}"].add(folder + slash + front)
            extensions[middle].add(extension.lower())
    samples = set().union(*holders.values()) | (plain - long)
    return {
        member
        for member, held in holders.items()
        if _of_one_sort(extensions[member.rpartition(".")[0]]) and _is_member(held, plain, samples)
    }


def _of_one_sort(extensions: Iterable[str]) -> bool:
    """Whether all are texts, or none: p.paris.jpg with p.paris.txt is a pair with a dot in it."""
    return len({BY_EXTENSION.get(each, "") in _TEXTS for each in extensions}) == 1


def _is_member(held: set[str], plain: set[str], samples: set[str]) -> bool:
    beside = len(held & plain)
    if len(held) < 2:
        return beside == len(samples) == 1
    return beside >= _MOST * len(held) or len(held) >= _MOST * len(samples)
