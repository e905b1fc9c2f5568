"""Where shards go: a local folder, or any URL that fsspec can write to."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from multimodal.core.extras import extra_needed
from multimodal.core.files import WriteError, remove_leftovers, write_bytes, write_errors
from multimodal.data.packing.write import PACKED
from multimodal.data.shards.remote import is_remote

_ATTEMPTS = 3
_PAUSE = 0.5  # seconds before the second attempt, twice as long before the third


class Output(Protocol):
    """A place for shards. Whatever is in it under its name is whole."""

    @property
    def name(self) -> str:
        """What the last part of it is called."""
        ...

    def where(self, name: str) -> str:
        """The path or URL of a file, for messages."""
        ...

    def prepare(self, folder: str) -> None:
        """Makes the place, and a folder in it."""
        ...

    def remove_leftovers(self, begin: str) -> None:
        """Removes what killed processes have left of files whose names begin so."""
        ...

    def staged(self, name: str) -> Any:
        """A context with a local path; the files that are written beside it go to the place."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Writes a small file."""
        ...

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if it is not there."""
        ...

    def size(self, name: str) -> int | None:
        """The size of a file; None if it is not there."""
        ...

    def names(self, folder: str) -> list[str]:
        """The files of a folder in it."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        ...


def output_at(path: str | Path) -> Output:
    """The output at a path or URL."""
    text = str(path)
    if is_remote(text):
        return URLOutput(text.rstrip("/"))
    return FolderOutput(Path(text.removeprefix("file://")).expanduser())


@dataclass(frozen=True, slots=True)
class FolderOutput:
    """A folder; see `Output` for what each method does."""

    folder: Path

    @property
    def name(self) -> str:
        """See `Output`."""
        return self.folder.resolve().name

    def where(self, name: str) -> str:
        """See `Output`."""
        return str(self.folder / name)

    def prepare(self, folder: str) -> None:
        """See `Output`."""
        with write_errors(self.folder):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)

    def remove_leftovers(self, begin: str) -> None:
        """See `Output`."""
        remove_leftovers(self.folder, begin)

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """See `Output`."""
        yield self.folder / name

    def write(self, name: str, data: bytes) -> None:
        """See `Output`."""
        write_bytes(self.folder / name, data, PACKED)

    def read(self, name: str) -> bytes | None:
        """See `Output`."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """See `Output`."""
        path = self.folder / name
        return path.stat().st_size if path.is_file() else None

    def names(self, folder: str) -> list[str]:
        """See `Output`."""
        return sorted(path.name for path in (self.folder / folder).glob("*") if path.is_file())

    def remove(self, name: str) -> None:
        """See `Output`."""
        (self.folder / name).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class URLOutput:
    """A folder behind a URL; see `Output` for what each method does."""

    url: str

    @property
    def name(self) -> str:
        """See `Output`."""
        return self.url.rpartition("/")[2]

    def where(self, name: str) -> str:
        """See `Output`."""
        return f"{self.url}/{name}"

    def prepare(self, folder: str) -> None:
        """See `Output`."""
        self._tried("make", folder, lambda files, path: files.makedirs(path, exist_ok=True))

    def remove_leftovers(self, begin: str) -> None:
        """Nothing: a file is written whole."""

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """See `Output`."""
        with tempfile.TemporaryDirectory(prefix="multimodal-") as folder:
            yield Path(folder) / name
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    self._put(path, path.relative_to(folder).as_posix())

    def _put(self, path: Path, name: str) -> None:
        size = path.stat().st_size

        def put(files: Any, target: str) -> None:
            files.makedirs(target.rpartition("/")[0], exist_ok=True)
            files.put_file(str(path), target)
            if (there := files.size(target)) != size:
                raise OSError(f"{there} of {size} bytes are there")

        self._tried("write", name, put)

    def write(self, name: str, data: bytes) -> None:
        """See `Output`."""
        self._tried("write", name, lambda files, path: files.pipe_file(path, data))

    def read(self, name: str) -> bytes | None:
        """See `Output`."""

        def read(files: Any, path: str) -> bytes | None:
            try:
                content: bytes = files.cat_file(path)
            except FileNotFoundError:
                return None
            return content

        data: bytes | None = self._tried("read", name, read)
        return data

    def size(self, name: str) -> int | None:
        """See `Output`."""

        def size(files: Any, path: str) -> int | None:
            files.invalidate_cache()
            try:
                return int(files.size(path))
            except FileNotFoundError:
                return None

        length: int | None = self._tried("find", name, size)
        return length

    def names(self, folder: str) -> list[str]:
        """See `Output`."""

        def names(files: Any, path: str) -> list[str]:
            files.invalidate_cache()
            try:
                return sorted(str(each).rpartition("/")[2] for each in files.ls(path, detail=False))
            except FileNotFoundError:
                return []

        entries: list[str] = self._tried("list", folder, names)
        return entries

    def remove(self, name: str) -> None:
        """See `Output`."""

        def remove(files: Any, path: str) -> None:
            if files.exists(path):
                files.rm_file(path)

        self._tried("remove", name, remove)

    def _tried(self, what: str, name: str, action: Any) -> Any:
        """What ``action`` of the file system and the path returns; tried again where it fails.

        Raises:
            WriteError: if it fails to the last; names the URL and the file system's error.
        """
        from fsspec.core import url_to_fs

        url = self.where(name)
        with extra_needed("stream", f"packing to {url}"):
            try:
                files, path = url_to_fs(url)
            except ValueError as error:
                raise WriteError(f"cannot {what} {url}: {error}") from error
        for attempt in range(_ATTEMPTS - 1):
            try:
                return action(files, path)
            except Exception:  # noqa: PERF203 - every file system has its own errors
                time.sleep(_PAUSE * 2**attempt)
        try:
            return action(files, path)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise WriteError(f"cannot {what} {url}: {reason}. {PACKED}") from error
