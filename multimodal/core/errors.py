"""Errors for the user of a program, not for its developer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class UserError(Exception):
    """What the user gave, or what the machine lacks, makes the work impossible.

    The message says what was given, what was expected and what to do, so a program prints it
    without a traceback and ends with ``exit_status``: 2 where what was asked for cannot be, which
    is said before anything is begun; 1 where something failed underway (disk, network, data).
    """

    exit_status = 1

    @classmethod
    def mistake(cls, message: str) -> Self:
        """The error about what was asked for: a program that it ends ends with 2."""
        error = cls(message)
        error.exit_status = 2
        return error


class InputMismatchError(UserError, ValueError):
    """Inputs that an encoder cannot take; the message names what it expects and what it got."""

    exit_status = 2


class MissingExtraError(UserError, ModuleNotFoundError):
    """A feature whose extra is not installed; the message names the extra."""


@dataclass(frozen=True)
class ConfigProblem:
    """One problem of a configuration.

    Attributes:
        where: dotted path of the key, or the word of the command line.
        message: the given value, the expected one, and the nearest valid name.
    """

    where: str
    message: str


class ConfigError(UserError, ValueError):
    """An invalid configuration; the message lists every problem."""

    exit_status = 2

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        super().__init__(problems)  # as given, so that the error survives pickling
        self.problems = list(problems)

    def __str__(self) -> str:
        count = "1 error" if len(self.problems) == 1 else f"{len(self.problems)} errors"
        shown = "\n".join(
            f"  {problem.where}\n      {problem.message}" for problem in self.problems
        )
        return f"{count} in the configuration:\n{shown}"
