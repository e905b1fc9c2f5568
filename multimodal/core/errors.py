"""The errors that are for whoever runs a program, not for whoever writes it."""

from __future__ import annotations


class UserError(Exception):
    """What the user gave, or what the machine lacks, makes the work impossible.

    The message says what was given, what was expected and what to do, so a program prints it
    without a traceback and ends with ``exit_status``.
    """

    exit_status = 1


class MissingExtraError(UserError, ModuleNotFoundError):
    """A feature whose extra is not installed; the message names the extra."""
