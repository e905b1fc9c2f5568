"""What a person types, as Hydra's grammar of overrides takes it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from multimodal.config.composing import text_values

_KEY = r"\+{0,2}[\w./@]+"
_PLAIN = r"[^'\",()\[\]{}=]*"  # no list, choice, function, interpolation or quoted text
_ADDED = "debug|sweep|launcher"  # groups that say how, on top of any experiment
_STRUCTURED = r"[\[{'\"$]|\w+\("  # begins what the grammar has a meaning for


def normalize_args(
    argv: Sequence[str], texts: Collection[str] = (), paths: Collection[str] = ()
) -> list[str]:
    """Rewrites the words of a command line to what Hydra expects.

    ``debug=``, ``sweep=`` and ``launcher=`` become `+debug=NAME` and so on, and come after
    ``+experiment=NAME``: Hydra merges an added group after all those of the defaults list, and a
    `debug` listed there would be overridden by the experiment that it shortens. ``resume.allow=``
    is the key `resume_allow`, as `resume` itself holds a path. A value that the grammar has no
    place for (an equals sign, an apostrophe, letters other than English ones) is quoted.

    Args:
        argv: the words.
        texts: keys whose values are what a person would say, see `text_value`.
        paths: keys whose values are taken literally (`null` apart), but in a sweep.
    """
    sweeps = any(word in ("-m", "--multirun") for word in argv)
    arranged = []
    for word in argv:
        key, equals, value = word.partition("=")
        if equals and key in texts:
            word = f"{key}={text_value(value)}"
        elif equals and key in paths and not sweeps and value not in ("", "null"):
            word = word if _is_quoted(value) else f"{key}={quoted(value)}"
        elif equals and re.fullmatch(_KEY, key):
            key = "resume_allow" if key == "resume.allow" else key
            word = f"{key}={_value(value)}"
        arranged.append(word)
    slots = [i for i, word in enumerate(arranged) if re.match(rf"\+*(experiment|{_ADDED})=", word)]
    words = sorted(
        (arranged[i] for i in slots), key=lambda word: not re.match(r"\+*experiment=", word)
    )
    for slot, word in zip(slots, words, strict=True):
        arranged[slot] = f"+{word}" if re.match(rf"({_ADDED})=", word) else word
    return arranged


def text_value(text: str) -> str:
    """A text, or a list of texts and blocks ``{value, weight}``, in Hydra's grammar.

    What is in brackets or braces is read by `text_values`, or by Hydra where it has backslashes.
    Anything else is the text itself, whatever it holds, but for quotes around the whole of it.
    """
    stripped = text.strip()
    structured = stripped[:1] in ("[", "{") and "\\" in stripped
    if _is_quoted(stripped) or (structured and _parses(stripped)):
        return stripped
    content = text_values.written(text)
    if isinstance(content, str):
        return quoted(content)
    return "[" + ",".join(map(_as_override, content)) + "]"


def quoted(text: str) -> str:
    """``text`` as a quoted value, of which nothing is interpolated."""
    literal = re.sub(r"(\\*)\$\{", lambda match: f"{2 * match[1]}\\${{", text)
    return QuotedString(literal, Quote.single).with_quotes()


def _value(value: str) -> str:
    if re.fullmatch(rf"(?:{_PLAIN}=)+{_PLAIN}", value):
        return f"'{value}'"
    if value and not re.match(_STRUCTURED, value) and not _parses(value):
        return quoted(value)
    return value


def _as_override(item: text_values.Content) -> str:
    if isinstance(item, str):
        return quoted(item)
    return "{" + ",".join(f"{key}:{quoted(value)}" for key, value in item.items()) + "}"


def _is_quoted(value: str) -> bool:
    if value[:1] not in ("'", '"') or value[-1:] != value[:1]:
        return False
    try:
        parsed = OverridesParser.create().parse_override(f"k={value}")
    except HydraException:
        return False
    return isinstance(parsed._value, QuotedString)


def _parses(value: str) -> bool:
    try:
        OverridesParser.create().parse_override(f"k={value}")
    except HydraException:
        return False
    return True
