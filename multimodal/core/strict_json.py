"""Untrusted JSON: bounded, without duplicate keys, with one kind of error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

MAX_BYTES = 256 << 20
_MAX_DIGITS = 40  # of a whole number; more fit no field of ours, and take long to convert


class HugeNumber:
    """A whole number with too many digits to convert; no field accepts it."""

    def __init__(self, digits: int) -> None:
        self._digits = digits

    def __repr__(self) -> str:
        return f"a number of {self._digits:,} digits"


def parse(data: bytes | str, what: str) -> Any:
    """The content of a JSON document.

    Args:
        data: the document, in UTF-8.
        what: names it in messages.

    Raises:
        ValueError: if it is too large, is not UTF-8 or not JSON, is nested too deeply to read, has
            a key twice in one object, or holds NaN or infinity.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(
            f"{what} is too large: {len(data):,} bytes, at most {MAX_BYTES:,} are read"
        )
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        return json.loads(
            text,
            object_pairs_hook=unique_keys,
            parse_int=_whole_number,
            parse_constant=_refuse_constant,
        )
    except RecursionError:  # its traceback has a thousand lines and no further information
        raise ValueError(f"{what} is not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}") from error


def read(path: Path, what: str | None = None) -> Any:
    """The content of a JSON file; see `parse`.

    Raises:
        OSError: if the file cannot be read.
        ValueError: as `parse` does.
    """
    with path.open("rb") as file:
        return parse(file.read(MAX_BYTES + 1), str(path) if what is None else what)


def excerpt(value: Any, length: int = 80) -> str:
    """``repr`` of a parsed value for a message, never longer than ``length`` characters."""
    if isinstance(value, dict | list):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value):,} entries" if value else f"an empty {kind.split()[1]}"
    text = repr(value[: length + 1] if isinstance(value, str) else value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def is_text(value: Any) -> bool:
    """Whether a value is a string that can be written as UTF-8 (no lone surrogates)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these pairs, for ``object_pairs_hook``; refuses a key that is there twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {excerpt(twice)} occurs twice in one object")
    return content


def _whole_number(digits: str) -> int | HugeNumber:
    return int(digits) if len(digits) <= _MAX_DIGITS else HugeNumber(len(digits.lstrip("-")))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
