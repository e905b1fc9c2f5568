"""How a program ends on an error: a message for its user, a traceback for a fault of ours."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from multimodal.core.errors import UserError

FULL = "HYDRA_FULL_ERROR"  # Hydra's own variable: 1 shows every traceback


def message_of(error: BaseException) -> str | None:
    """The message to print in place of a traceback; None for a fault of ours."""
    if isinstance(error, UserError):
        return str(error)
    # The system names the path and the reason: missing, a folder, not permitted, a full disk.
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return None


def report(error: BaseException) -> int:
    """Prints ``error`` on standard error and returns the exit status that it asks for."""
    message = message_of(error)
    if message is None or os.environ.get(FULL) == "1":
        traceback.print_exception(error)
    else:
        print(message, file=sys.stderr)
    return error.exit_status if isinstance(error, UserError) else 1


@contextmanager
def errors_end_the_program() -> Iterator[None]:
    """Within, an error is reported once and ends the program with its exit status."""
    try:
        yield
    except Exception as error:
        sys.stdout.flush()
        sys.exit(report(error))
