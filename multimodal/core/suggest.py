"""The nearest right name for a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, candidates: Iterable[str], count: int = 1) -> list[str]:
    """Those of ``candidates`` that ``name`` is most likely a misspelling of, best first."""
    names = {candidate.lower(): candidate for candidate in sorted(set(candidates))}
    close = difflib.get_close_matches(name.lower(), names, count, 0.6)
    return [names[match] for match in close]


def did_you_mean(name: str, candidates: Iterable[str], prefix: str = "") -> str:
    """The nearest valid name as a question, or else all valid names."""
    known = sorted(set(candidates))
    if close := nearest(name, known):
        return f"did you mean '{prefix}{close[0]}'?"
    return f"known: {', '.join(known)}" if known else "there is none"


def suggest(given: str, names: Iterable[str]) -> str:
    """The end of an error message: the nearest name, or all that there are."""
    names = sorted(names)
    near = get_close_matches(given, names, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}"
