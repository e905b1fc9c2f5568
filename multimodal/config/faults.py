"""What a fault in a configuration looks like to its reader."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from multimodal.core.errors import UserError


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        where: dotted path of the key, or the word of the command line.
        problem: what was given, what was expected, and the nearest right name.
    """

    where: str
    problem: str


class ConfigError(UserError, ValueError):
    """A configuration that cannot be trained as it stands; the message lists every fault."""

    exit_status = 2

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(faults)  # as given, so that the error survives pickling
        self.faults = list(faults)

    def __str__(self) -> str:
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        shown = "\n".join(f"  {fault.where}\n      {fault.problem}" for fault in self.faults)
        return f"{count} in the configuration:\n{shown}"


def nearest(name: str, candidates: Iterable[str], count: int = 1) -> list[str]:
    """Those of ``candidates`` that ``name`` is most likely a misspelling of, best first."""
    names = {candidate.lower(): candidate for candidate in sorted(set(candidates))}
    found = difflib.get_close_matches(name.lower(), names, count, 0.6)
    return [names[match] for match in found]


def did_you_mean(name: str, candidates: Iterable[str], prefix: str = "") -> str:
    """The nearest right name as a question, or else the names that there are."""
    known = sorted(set(candidates))
    if found := nearest(name, known):
        return f"did you mean '{prefix}{found[0]}'?"
    return f"known: {', '.join(known)}" if known else "there is none"
