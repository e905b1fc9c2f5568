"""Keys of samples: names that any tar, file system and program takes."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from multimodal.core.hashing import stable_hash

_LONGEST = 120  # characters of a folder's or file's part
# A dot would begin the member's name; the others are not names on every system.
_UNSAFE = re.compile(r'[.\s<>:"\\|?*\x00-\x1f\x7f]')


def safe_key(name: str) -> str:
    """A key for the name ``name``: no dots, spaces, control characters; Unicode form C.

    Args:
        name: of the sample, its folders parted by ``/``.
    """
    text = unicodedata.normalize("NFC", printable(name))
    parts = [_UNSAFE.sub("_", part) for part in text.split("/") if part.strip()]
    return "/".join(part if len(part) <= _LONGEST else _cut(part) for part in parts)


def unique_keys(names: Iterable[str]) -> dict[str, str]:
    """A key of its own for every name, also where capitals and small letters are not told apart.

    Names whose keys would be one get a part of their hash added, whichever comes first.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[safe_key(name).casefold()].append(name)
    keys = {}
    for group in groups.values():
        for name in group:
            key = safe_key(name)
            keys[name] = key if len(group) == 1 else f"{key}-{_digest(name)}"
    return keys


def printable(name: str) -> str:
    """The name as any file takes it: bytes that are not Unicode are written out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _cut(part: str) -> str:
    return f"{part[:_LONGEST]}-{_digest(part)}"


def _digest(name: str) -> str:
    return f"{stable_hash(name) & 0xFFFFFFFF:08x}"
