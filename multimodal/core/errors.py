"""The errors that are for whoever runs a program, not for whoever writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class UserError(Exception):
    """What the user gave, or what the machine lacks, makes the work impossible.

    The message says what was given, what was expected and what to do, so a program prints it
    without a traceback and ends with ``exit_status``.
    """

    exit_status = 1


class MissingExtraError(UserError, ModuleNotFoundError):
    """A feature whose extra is not installed; the message names the extra."""


@dataclass(frozen=True)
class Fault:
    """One fault of a configuration.

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
