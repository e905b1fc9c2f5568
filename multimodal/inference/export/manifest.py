"""``model.json``: what an exported folder holds, judged before anything of it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multimodal.core import files, strict_json
from multimodal.inference.export.graphs import ExportError

FORMAT, VERSION = "multimodal-export", 1
NAME = "model.json"
WEIGHTS, CONFIG, RUNNER, CARD = "model.safetensors", "config.yaml", "run.py", "README.md"
UNHASHED = (NAME, CARD)  # a card may be edited


def is_exported(folder: Path) -> bool:
    """Whether ``folder`` has a ``model.json``."""
    return (folder / NAME).is_file()


def read(folder: Path) -> dict[str, Any]:
    """The content of ``model.json``, after every file that it lists has been compared with it.

    Raises:
        ExportError: if it is not there, is of something else or of another version, or a file is
            missing or damaged; the message names it.
    """
    path = folder / NAME
    if not path.is_file():
        raise ExportError(f"{folder} is not an exported model: it has no {NAME}")
    try:
        parsed: Any = strict_json.read(path)
    except ValueError as error:
        raise ExportError(str(error)) from error
    content: dict[str, Any] = parsed if isinstance(parsed, dict) else {}
    kind = content.get("format")
    if kind != FORMAT:
        raise ExportError(f"{path} is not of an exported model: format is {kind!r}, not {FORMAT!r}")
    version = content.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        what = "install a newer multimodal" if newer else "export the model anew"
        raise ExportError(f"{path} is of version {version!r}, this reads {VERSION}: {what}")
    listed, towers = content.get("files"), content.get("towers")
    if not isinstance(listed, dict) or not isinstance(towers, dict):
        raise ExportError(f"{path} is damaged: `files` and `towers` must be objects")
    for name, expected in listed.items():
        if Path(name).name != name or not (folder / name).is_file():
            raise ExportError(f"{folder} lacks {name!r}, which {NAME} lists: export it anew")
        if sha256(folder / name) != expected:
            raise ExportError(
                f"{folder / name} is damaged, or was changed: its hash is not that in {NAME}"
            )
    return content


def hashes(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files that ``model.json`` vouches for."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return {name: sha256(folder / name) for name in names if name not in UNHASHED}


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    return files.sha256(path).hex()
