"""Files that come whole or not at all, and what a full disk says.

A file is written beside its place, synced and renamed: whatever happens, under its name is the old
content or the new one. What the disk refuses becomes one `WriteError`.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from multimodal.core.errors import UserError

TEMPORARY = ".tmp"  # the end of names that are not files of ours yet
_ADVICE = {
    errno.ENOSPC: "Free some space, or name another folder",
    errno.EDQUOT: "Your quota is used up: free some of it, or name another folder",
    errno.EFBIG: "The file would be larger than the system lets it be: see `ulimit -f`",
    errno.EIO: "The device fails: see the system's log before you write there again",
    errno.EROFS: "It is mounted read-only: name another folder",
    errno.EACCES: "Ask for write permission, or choose another folder",
    errno.EPERM: "Ask for write permission, or choose another folder",
}
# Libraries that tell of the system's error in words only.
_IN_WORDS = re.compile(r"(?:os error|errno) (\d+)", re.IGNORECASE)


class WriteError(UserError, OSError):
    """A file that could not be written; the message names path, space and the files left whole."""


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


class NewFile:
    """A file that takes its name when it is whole; a context that fails leaves no trace of it.

    Args:
        path: of the file; its folder is made.
        whole: says, for the message, which files are untouched where this cannot be written.
        advice: what to do, where the disk is full; None for the usual.
        hashed: is updated by all that is written.

    Raises:
        WriteError: here and in every method, if the file system refuses it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        whole: str = "",
        advice: str | None = None,
        hashed: _Hash | None = None,
    ) -> None:
        self.path = Path(path)
        self.written = 0
        self._whole, self._advice, self._hashed = whole, advice, hashed
        self._error: WriteError | None = None
        self._file: IO[bytes] | None = None
        self._temporary = _beside(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("xb")
            _keep_mode(self.path, self._temporary)
        except OSError as error:
            raise self._refused(error) from error

    def write(self, data: Any) -> int:
        """Appends bytes, or what has them in memory."""
        if not isinstance(data, bytes):
            view = memoryview(data)
            data = view.cast("B") if view.nbytes else b""
        try:
            self._open_file().write(data)
        except OSError as error:
            raise self._refused(error) from error
        if self._hashed is not None:
            self._hashed.update(data)
        self.written += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes so far."""
        return self.written

    def flush(self) -> None:
        """Hands on to the system what was written."""
        try:
            self._open_file().flush()
        except OSError as error:
            raise self._refused(error) from error

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._file is None

    def commit(self) -> None:
        """Puts the file in its place."""
        file = self._open_file()
        try:
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(self._temporary, self.path)
            self._file = None
            sync_folder(self.path.parent)
        except OSError as error:
            raise self._refused(error) from error

    def discard(self) -> None:
        """Leaves no trace of it, unless it is in its place."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # of a full disk, closing fails once more
                file.close()
            with suppress(OSError):
                self._temporary.unlink()

    def _open_file(self) -> IO[bytes]:
        if self._file is None:
            raise self._error or ValueError(f"{self.path} is written already")
        return self._file

    def _refused(self, error: OSError) -> WriteError:
        self.discard()
        self._error = WriteError(unwritable(self.path, error, self._whole, self._advice))
        return self._error

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.commit()
            return
        self.discard()
        # A library may have wrapped the disk's error.
        if self._error is not None and error is not self._error:
            raise self._error from error


def write_bytes(path: str | os.PathLike[str], content: bytes, whole: str = "") -> None:
    """The whole file, or it stays as it was; see `NewFile`."""
    with NewFile(path, whole) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], content: str, whole: str = "") -> None:
    """The whole file in UTF-8, or it stays as it was; see `NewFile`."""
    write_bytes(path, content.encode(), whole)


def append_line(path: Path, line: bytes) -> None:
    """The whole line at the end of a file, or the file as it was.

    Raises:
        OSError: if the file system refuses it.
    """
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        if file.write(line) != len(line):  # a full disk takes a part
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def written_beside(path: str | os.PathLike[str], whole: str = "") -> Iterator[Path]:
    """A path beside ``path`` for a library that writes by name; then the file takes its place.

    Raises:
        WriteError: if the file system refuses it.
    """
    target = Path(path)
    temporary = _beside(target)
    try:
        with write_errors(target, whole, before=lambda: temporary.unlink(missing_ok=True)):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
            sync_folder(target.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``output`` at the end, or disappears with an error.

    Args:
        output: must not exist, or be empty.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield made
        made.chmod(0o755)
        if output.exists():
            output.rmdir()
        made.rename(output)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


@contextmanager
def write_errors(
    path: str | os.PathLike[str], whole: str = "", before: Any = lambda: None
) -> Iterator[None]:
    """Within, what the disk refuses becomes a `WriteError` about ``path``.

    Args:
        path: that is written.
        whole: as of `NewFile`.
        before: called before the free space is looked at.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is None:
            raise
        with suppress(OSError):
            before()
        raise WriteError(unwritable(path, refusal, whole)) from error


def unwritable(
    path: str | os.PathLike[str], error: OSError, whole: str = "", advice: str | None = None
) -> str:
    """The message of a file that cannot be written: where, why, the space, files left whole."""
    target = Path(path)
    folder = next((p for p in (target.parent, *target.parent.parents) if p.is_dir()), Path("/"))
    if not whole:
        there = os.path.lexists(target)
        whole = "What was there before is untouched" if there else "No part of it was left"
    usual = _ADVICE.get(error.errno or 0, "Name another path")
    what_to_do = advice if advice is not None and error.errno == errno.ENOSPC else usual
    space = f"{free_megabytes(folder):.1f} MB are free in {folder}"
    return f"cannot save {target}: {reason(error)}. {space}. {whole}. {what_to_do}"


def refusal_of(error: BaseException) -> OSError | None:
    """The system's refusal to write that an error tells of; None where it tells of another."""
    if isinstance(error, OSError) and error.errno in _ADVICE:
        return error
    if (match := _IN_WORDS.search(str(error))) and int(match[1]) in _ADVICE:
        return OSError(int(match[1]), os.strerror(int(match[1])))
    return None


def reason(error: OSError) -> str:
    """The system's words for an error."""
    if isinstance(error, WriteError) and isinstance(error.__cause__, OSError):
        error = error.__cause__
    return os.strerror(error.errno) if error.errno else str(error)


def remove_leftovers(folder: Path, begin: str) -> None:
    """Removes what killed processes have left of new files whose names begin with ``begin``."""
    for leftover in folder.glob(f".{glob.escape(begin)}*{TEMPORARY}"):
        leftover.unlink(missing_ok=True)


def free_megabytes(folder: Path) -> float:
    """Space that is left where ``folder`` is."""
    try:
        return shutil.disk_usage(folder).free / 1e6
    except OSError:
        return 0.0


def sha256(path: Path) -> bytes:
    """SHA-256 of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def sync_folder(folder: Path) -> None:
    """Makes renames in ``folder`` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of file systems that do not sync folders
            raise
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    """A unique hidden name in the same folder; short enough for any name."""
    return path.with_name(f".{path.name[:60]}.{secrets.token_hex(4)}{TEMPORARY}")


def _keep_mode(path: Path, temporary: Path) -> None:
    with suppress(FileNotFoundError):
        temporary.chmod(path.stat().st_mode & 0o777)
