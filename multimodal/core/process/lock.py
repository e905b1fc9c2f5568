"""One run per folder: a lock that names its holder and does not outlive its process.

The operating system's record lock (`fcntl.lockf`) decides: the kernel frees it when the process
dies, forked data workers do not inherit it, and NFS and the parallel file systems carry it to other
hosts. Where a mount does not (``nolock``), the record in the file decides: on the same machine the
process it names is looked up, on another one its heartbeat is watched.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from multimodal.core.errors import UserError

NAME = "run.lock"
_BEAT_S = 5.0
_SILENT_S = 4 * _BEAT_S  # a holder on another host without a heartbeat for this long is dead
_TAKEN = (errno.EACCES, errno.EAGAIN)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: dict[str, int] = {}  # folder -> process: record locks do not exclude within a process


class FolderInUseError(UserError, RuntimeError):
    """A folder in which another run is under way."""

    exit_status = 2


@dataclass(frozen=True)
class Holder:
    """The process that holds a folder.

    Attributes:
        host: its name.
        pid: of the process.
        started: when the run began, for messages.
        machine: what process ids are unique in: this boot of this host, this container.
        born: when the process started, in the machine's own terms; a reused pid has another.
        inode: of the lock file; a copy of the folder has another and is not held.
    """

    host: str
    pid: int
    started: str
    machine: str
    born: str
    inode: int

    def __str__(self) -> str:
        return f"host {self.host}, process {self.pid}, started {self.started}"


def holder(folder: Path) -> Holder | None:
    """The process that holds ``folder``, if it is alive; None if it is free."""
    path = folder / NAME
    record = _read(path)
    if record is None or _held.get(_key(folder)) == os.getpid():
        return record
    if record.machine == _machine():
        return record if _born(record.pid) == record.born else None
    return record if _beats(path, record) else None


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within, no other run can hold ``folder``, which is made where it is missing.

    Raises:
        FolderInUseError: if one does; names its host, process and start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if _held.get(_key(folder)) == os.getpid():
        raise FolderInUseError(_message(folder, _read(folder / NAME)))
    file = _acquire(folder)
    _held[_key(folder)] = owner = os.getpid()
    ended = threading.Event()
    threading.Thread(target=_beat, args=(folder / NAME, ended), daemon=True).start()
    try:
        yield
    finally:
        if os.getpid() == owner:  # not in a process forked from this one
            ended.set()
            _held.pop(_key(folder), None)
            with suppress(OSError):
                (folder / NAME).unlink()
            os.close(file)


def refuse_if_held(folder: Path) -> None:
    """Raises:
    FolderInUseError: if a run is under way in ``folder``.
    """
    if (other := holder(folder)) is not None:
        raise FolderInUseError(_message(folder, other))


def _message(folder: Path, other: Holder | None) -> str:
    who = "another process" if other is None else str(other)
    return (
        f"{folder} is in use by another run ({who}); wait for it to end or stop it, or give this "
        "run its own folder: hydra.run.dir=outputs/NAME (of a sweep: hydra.sweep.dir=...)"
    )


def _acquire(folder: Path) -> int:
    """The open lock file, with this process as its holder."""
    path = folder / NAME
    while True:
        before = _read(path)
        refuse_if_held(folder)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        supported = True
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                os.close(file)
                raise FolderInUseError(_message(folder, _named(path))) from None
            supported = False
            if error.errno not in _UNSUPPORTED:
                os.close(file)
                raise
        # Read by this descriptor: to close another one of the same file would free the lock.
        if not _is_at(file, path) or _parse(file) != before:
            os.close(file)
            continue
        own = _this_process(os.fstat(file).st_ino)
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(asdict(own)).encode(), 0)
        os.fsync(file)
        if not supported:
            time.sleep(0.5)  # of two that came at once the later one stays
            if _parse(file) != own:
                os.close(file)
                continue
        if before is not None:
            print(f"{folder}: the run that held it is dead ({before}); taken over", file=sys.stderr)
        return file


def _named(path: Path) -> Holder | None:
    for _ in range(20):  # it writes its name just after it has the lock
        if (record := _read(path)) is not None:
            return record
        time.sleep(0.05)
    return None


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_BEAT_S):
        with suppress(OSError):
            os.utime(path)


def _beats(path: Path, record: Holder) -> bool:
    """Whether the heartbeat moves; no clocks of two hosts are compared."""
    print(
        f"{path.parent}: held by a run on another machine ({record}); waiting up to "
        f"{_SILENT_S:.0f} s for a sign of life",
        file=sys.stderr,
    )
    first, end = _stamp(path), time.monotonic() + _SILENT_S
    while time.monotonic() < end:
        time.sleep(min(1.0, _BEAT_S))
        stamp = _stamp(path)
        if stamp is None:
            return False
        if stamp != first:
            return True
    return False


def _stamp(path: Path) -> int | None:
    try:
        with path.open("rb") as file:  # opening has NFS ask its server
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def _read(path: Path) -> Holder | None:
    try:
        with path.open("rb") as file:
            return _parse(file.fileno())
    except OSError:
        return None


def _parse(file: int) -> Holder | None:
    try:
        record = Holder(**json.loads(os.pread(file, 1 << 16, 0)))
    except (ValueError, TypeError):
        return None
    return record if record.inode == os.fstat(file).st_ino else None


def _key(folder: Path) -> str:
    return os.path.realpath(folder)


def _this_process(inode: int) -> Holder:
    now = datetime.now(timezone.utc).astimezone().isoformat(sep=" ", timespec="seconds")
    born = _born(os.getpid()) or ""
    return Holder(platform.node(), os.getpid(), now, _machine(), born, inode)


def _machine() -> str:
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _born(pid: int) -> str | None:
    """The start of a process in clock ticks since boot; None if there is none, or only a zombie."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
