"""Texts and lists of texts as a person types them: no grammar, but for brackets around the whole.

a red dog, sitting                              a text
[dog.jpg, +at night, -what's that?]             a list, split at its commas
[dog.jpg, {value: at night, weight: 0.5}]       with blocks in it
[dog.jpg, 'at night, in the rain']              quotes around an item keep its commas
"""

from __future__ import annotations

import re
from typing import TypeAlias

Content: TypeAlias = "str | dict[str, str]"

_ENTRY = re.compile(r"\s*([A-Za-z_]\w*)\s*:(?:\s+|$)(.*)", re.S)
_QUOTED = re.compile(r"""\s*([+-]?\s*)(['"])(.*)\2\s*""", re.S)
_BEGUN = r"""\s*(?:[A-Za-z_]\w*\s*:\s+)?[+-]?\s*"""  # before the quote of an item, or of a value
_OPENED = re.compile(rf"""{_BEGUN}(['"])""")
_CLOSED = re.compile(rf"""{_BEGUN}(['"]).*\1\s*""", re.S)


def written(text: str) -> str | list[Content]:
    """``text`` itself, or the items of a list or block that it is."""
    stripped = text.strip()
    if stripped[:1] + stripped[-1:] == "[]":
        items = [_item(part) for part in _split(stripped[1:-1])]
        return items if any(items) else text
    if stripped[:1] + stripped[-1:] == "{}":
        block = _item(stripped)
        return text if isinstance(block, str) else [block]
    return text


def _item(part: str) -> Content:
    stripped = part.strip()
    if stripped[:1] + stripped[-1:] == "{}":
        entries: dict[str, str] = {}
        for entry in _split(stripped[1:-1]):
            if match := _ENTRY.fullmatch(entry):
                entries[match[1]] = _unquoted(match[2])
            elif entries:  # a comma in the value before
                entries[list(entries)[-1]] += f",{entry.rstrip()}"
            else:
                return stripped
        return entries or stripped
    return _unquoted(stripped)


def _unquoted(text: str) -> str:
    match = _QUOTED.fullmatch(text)
    return f"{match[1]}{match[3]}" if match else text.strip()


def _split(text: str) -> list[str]:
    """At commas that are in neither a block nor quotes around an item or a value."""
    parts, depth = [""], 0
    for place, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth <= 0 and not _is_inside(parts[-1], text[place:]):
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _is_inside(part: str, rest: str) -> bool:
    """Whether ``part`` begins with a quote that only ``rest`` closes, at the end of an item."""
    opened = _OPENED.match(part)
    if opened is None or _CLOSED.fullmatch(part):
        return False
    return re.search(rf"{opened[1]}\s*(,|$)", rest) is not None
