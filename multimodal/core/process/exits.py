"""How a program ends on an error: a message for its user, a traceback for a bug of ours."""

from __future__ import annotations

import errno
import gc
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from multimodal.core.errors import UserError
from multimodal.core.files import unwritable

FULL = "HYDRA_FULL_ERROR"  # Hydra's own variable: 1 shows every traceback
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

_ADVICE = {
    errno.ENOENT: "; expected an existing path",
    errno.EEXIST: "; a file is where a folder is needed: name another path, or move the file away",
    errno.ENOTDIR: "; a file is where a folder is needed: name another path, or move the file away",
    errno.EISDIR: "; a folder is where a file is expected: name the file",
    errno.EACCES: "; change its permissions, or name another path",
    errno.EPERM: "; change its permissions, or name another path",
    errno.ELOOP: "; the link leads to itself: name the file that it was to lead to",
    errno.ENAMETOOLONG: "; name a shorter path",
}


def message_of(error: BaseException) -> str | None:
    """The message to print in place of a traceback; None for a bug of ours."""
    if isinstance(error, UserError):
        return _without_traceback(str(error), type(error).__name__)
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        path = os.fsdecode(error.filename) if error.filename else _file_written(error)
        if path is not None:
            return unwritable(Path(path).absolute(), error, "It may be there in part")
        return f"a file cannot be written: {error.strerror}"
    # The system names the path and the reason: missing, a folder, not permitted, a full disk.
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        advice = _ADVICE.get(error.errno or 0, "")
        return f"{_short(os.fsdecode(error.filename))}: {error.strerror}{advice}"
    return None


def _short(path: str) -> str:
    return path if len(path) <= 300 else f"{path[:200]}... ({len(path):,} characters)"


def report(error: BaseException) -> int:
    """Prints ``error`` on standard error and returns the exit status that it asks for."""
    message = message_of(error)
    if message is None or os.environ.get(FULL) == "1":
        traceback.print_exception(error)
    else:
        print(message, file=sys.stderr)
    return error.exit_status if isinstance(error, UserError) else 1


def _file_written(error: OSError) -> str | None:
    """The file that a library was writing: the system does not name it, the library holds it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for value in frame.f_locals.values():
            if isinstance(value, io.IOBase) and isinstance(getattr(value, "name", None), str):
                return str(value.name)  # type: ignore[attr-defined]
    return None


def _without_traceback(message: str, kind: str) -> str:
    """What an error said in the process that loads data, of which torch makes a longer text."""
    if not message.startswith("Caught ") or "Original Traceback" not in message:
        return message
    return re.split(rf"\n(?:\w+\.)*{kind}: ", message)[-1].strip()


@contextmanager
def _log_files_warn_once() -> Iterator[None]:
    """Within, a log file that cannot be written is one line, not a traceback for every record."""
    if "handleError" in vars(logging.FileHandler):  # a job within the command line
        yield
        return
    usual, reported = logging.Handler.handleError, set[str]()

    def handle(self: logging.FileHandler, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            usual(self, record)
        elif self.baseFilename not in reported:
            reported.add(self.baseFilename)
            whole = "The lines before are whole, the work continues"
            print(f"WARNING: {unwritable(self.baseFilename, error, whole)}", file=sys.stderr)

    logging.FileHandler.handleError = handle  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del logging.FileHandler.handleError  # its base has the usual one


@contextmanager
def errors_end_the_program() -> Iterator[None]:
    """Within, an error is reported once and ends the program with its exit status."""
    try:
        with _log_files_warn_once():
            yield
    except Exception as error:
        sys.stdout.flush()
        sys.exit(report(error))


def skip_last_collection() -> None:
    """Python's end becomes short: it no longer looks for garbage among all that torch has made.

    For its exit handlers. What garbage may still hold is written: the buffers of files left open.
    """
    for thing in gc.get_objects():
        kind = type(thing)
        if kind is io.TextIOWrapper or kind is io.BufferedWriter or kind is io.BufferedRandom:
            with suppress(OSError, ValueError):  # closed, or without a place to write to
                thing.flush()
    gc.freeze()


@contextmanager
def refused(program: str, exit_status: int = 2) -> Iterator[None]:
    """Within, a `ValueError` is about what the user gave, and a missing file one that was named.

    Args:
        program: that refuses it, named in the message.
        exit_status: of the program then: 1 where it may have been the data that it read.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, FileNotFoundError) as error:
        # The system's own names its path, and what to do.
        refusal = UserError(message_of(error) or f"{program}: {error}")
        refusal.exit_status = exit_status
        raise refusal from error
