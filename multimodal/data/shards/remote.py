"""Remote shards, fetched whole into a cache that all processes of a node share.

Any URL that fsspec knows (``s3://``, ``gs://``, ``hf://``, ``https://`` ...), with the package that
it asks for; nothing is ever run by a shell.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from multimodal.core.files import WriteError, refusal_of, sha256, unwritable, write_errors
from multimodal.data.errors import ShardError

DEFAULT_FOLDER = "~/.cache/multimodal/shards"
DEFAULT_BYTES = 100 << 30  # of all shards in it
_ATTEMPTS = 3
_PAUSE = 0.5  # seconds before the second attempt, twice as long before the third
# What only the own disk refuses; a right to read may be missing far away.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_WHOLE = "The shards that were fetched are whole"
_ADVICE = "Free some space, lower data.remote_cache_gb, or give another data.remote_cache_folder"
_FETCHERS = 4  # shards that a process fetches at a time

T = TypeVar("T")


class RemoteShard(NamedTuple):
    """A remote shard and its manifest entry."""

    url: str
    size: int
    sha256: bytes


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL that fsspec is to open."""
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme not in ("samples", "file")


def unknown_scheme(url: str) -> str:
    """The scheme of a URL that no file system is known for; empty if one is."""
    from fsspec.registry import known_implementations, registry

    scheme = url.partition("://")[0]
    return "" if scheme in known_implementations or scheme in registry else scheme


def read_url(url: str, limit: int) -> bytes:
    """The first ``limit`` bytes of a remote file.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if nothing can open such a URL.
        OSError: if it cannot be read.
    """
    filesystem, path = _filesystem(url)
    try:
        with filesystem.open(path, "rb") as file:
            content: bytes = file.read(limit)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url} is not there") from error
    except Exception as error:  # every file system has its own errors
        raise OSError(f"{url} cannot be read: {type(error).__name__}: {error}") from error
    return content


def list_url(url: str, ending: str) -> list[str]:
    """The URLs of the files in a remote folder whose names have this ending, sorted.

    Raises:
        ValueError: if nothing can open such a URL.
        OSError: if it cannot be listed.
    """
    filesystem, path = _filesystem(url)
    try:
        names = [str(name) for name in filesystem.ls(path, detail=False)]
    except Exception as error:  # every file system has its own errors
        raise OSError(
            f"{url} cannot be listed: {type(error).__name__}: {error}; name the manifest itself"
        ) from error
    files = sorted(name.rpartition("/")[2] for name in names if name.endswith(ending))
    return [f"{url.rstrip('/')}/{name}" for name in files]


class ShardCache:
    """An LRU cache of shards on disk, named by their hashes.

    Processes may share the folder: each shard is fetched once, and one that somebody has opened
    can be read to its end even after it was removed (the file system keeps it until then).

    Args:
        folder: made when the first shard is fetched.
        max_bytes: of all shards together.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
        self.folder = Path(folder).expanduser()
        self.max_bytes = max_bytes
        self._pool: tuple[int, ThreadPoolExecutor] | None = None  # of the process that made it
        self._under_way: dict[bytes, Future[None]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.max_bytes)

    def open(self, shard: RemoteShard, use: Callable[[Path], T]) -> T:
        """``use`` of the local file, which is fetched if it is not there.

        Raises:
            ShardError: if the shard is missing, or has another size or hash than it should.
            ValueError: if the cache cannot hold it.
        """
        path = self._path(shard)
        while True:
            with write_errors(self.folder, _WHOLE):
                self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked("evict", fcntl.LOCK_SH):
                if path.exists():
                    os.utime(path)  # it was used just now
                    return use(path)
            self._fetch(shard)

    def fetch_ahead(self, shards: Iterable[RemoteShard]) -> None:
        """Starts to fetch missing shards and returns at once; failures surface on use."""
        if self._pool is None or self._pool[0] != os.getpid():  # threads do not survive a fork
            self._pool = os.getpid(), ThreadPoolExecutor(_FETCHERS, "fetch")
            self._under_way = {}
        self._under_way = {k: task for k, task in self._under_way.items() if not task.done()}
        for shard in shards:
            if shard.sha256 not in self._under_way and not self._path(shard).exists():
                self._under_way[shard.sha256] = self._pool[1].submit(self._try_fetch, shard)

    def _try_fetch(self, shard: RemoteShard) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._fetch(shard)
        except (ShardError, ValueError, OSError):
            pass  # `open` reports it, with the samples that need it

    def _path(self, shard: RemoteShard) -> Path:
        return self.folder / f"{shard.sha256.hex()}.tar"

    @contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        """Holds a lock that all processes of the node see; it ends with its process."""
        path = self.folder / f".{name}.lock"
        with write_errors(path, _WHOLE):
            file = path.open("a")
        with file:
            fcntl.flock(file, how)
            yield

    def _fetch(self, shard: RemoteShard) -> None:
        """Fetches one shard, or waits for the process that does."""
        path = self._path(shard)
        with self._locked(shard.sha256.hex(), fcntl.LOCK_EX):
            if path.exists():
                return
            part = path.with_suffix(".part")
            try:
                self._make_room(shard, part)
                for attempt in range(_ATTEMPTS):
                    try:
                        _download(shard, part)
                        break
                    except ShardError as error:
                        if attempt == _ATTEMPTS - 1 or error.reason == "shard_missing":
                            raise
                        time.sleep(_PAUSE * 2**attempt)
                # Never during a listing of the folder, which may miss a renamed file.
                with self._locked("evict", fcntl.LOCK_SH):
                    os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)

    def _make_room(self, shard: RemoteShard, part: Path) -> None:
        """Evicts the least recently used shards, and reserves space for the next one."""
        if shard.size > self.max_bytes:
            raise ValueError(
                f"{shard.url} has {shard.size} bytes, the cache {self.folder} holds at most "
                f"{self.max_bytes}: raise data.remote_cache_gb"
            )
        with self._locked("evict", fcntl.LOCK_EX):
            cached: dict[Path, os.stat_result] = {}
            for path in self.folder.iterdir():
                if path.suffix in (".tar", ".part") and path != part:
                    with suppress(FileNotFoundError):  # a download that failed was removed
                        cached[path] = path.stat()
            spent = sum(status.st_size for status in cached.values())
            for path, status in sorted(cached.items(), key=lambda pair: pair[1].st_mtime):
                if spent + shard.size <= self.max_bytes:
                    break
                if path.suffix == ".tar" or self._is_stale(path):
                    path.unlink(missing_ok=True)
                    spent -= status.st_size
            with write_errors(part, _WHOLE), part.open("wb") as file:
                file.truncate(shard.size)

    def _is_stale(self, part: Path) -> bool:
        """Whether the process that was fetching this has ended."""
        with (self.folder / f".{part.stem}.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            return True


def _download(shard: RemoteShard, part: Path) -> None:
    try:
        filesystem, path = _filesystem(shard.url)
        filesystem.get_file(path, str(part))
    except FileNotFoundError as error:
        raise ShardError(shard.url, 0, "is not there", "shard_missing") from error
    except ValueError as error:
        raise ShardError(shard.url, 0, str(error), "shard_missing") from error
    except Exception as error:  # every file system has its own errors
        if (refusal := refusal_of(error)) is not None and refusal.errno in _OF_THE_DISK:
            part.unlink(missing_ok=True)
            raise WriteError(unwritable(part, refusal, _WHOLE, _ADVICE)) from error
        detail = f"cannot be fetched: {type(error).__name__}: {error}"
        raise ShardError(shard.url, 0, detail, "shard_unreachable") from error
    size = part.stat().st_size
    if size != shard.size:
        detail = f"has {size} bytes, the manifest says {shard.size}"
        raise ShardError(shard.url, min(size, shard.size), detail, "shard_size")
    if sha256(part) != shard.sha256:
        detail = f"sha256 differs from the manifest ({shard.sha256.hex()[:12]})"
        raise ShardError(shard.url, 0, detail, "shard_hash")


def _filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        ValueError: if none supports it; the message names the missing package.
    """
    try:
        from fsspec.core import url_to_fs

        opened: tuple[Any, str] = url_to_fs(url)
        return opened
    except (ImportError, ValueError) as error:
        raise ValueError(f"cannot open {url}: {error}") from error
