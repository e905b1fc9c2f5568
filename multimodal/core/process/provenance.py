"""Provenance of a run: its command, code, installed packages and machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from multimodal.core.files import write_text


def code_version() -> dict[str, Any]:
    """The package's version and, in a git checkout, its commit and whether it was changed."""
    folder = Path(__file__).resolve().parents[3]
    version: dict[str, Any] = {"version": _version("multimodal") or "unknown"}
    if (folder / ".git").exists():
        commit = _git(folder, "rev-parse", "HEAD")
        if commit is not None:
            version["commit"] = commit
            version["changed"] = bool(_git(folder, "status", "--porcelain", "-uno"))
    return version


def describe(command: list[str]) -> dict[str, Any]:
    """What `run.json` says of a start, as plain values.

    Args:
        command: its command-line arguments.
    """
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "folder": str(Path.cwd()),
        "code": code_version(),
        "python": platform.python_version(),
        "host": platform.node(),
        "packages": dict(sorted(_packages())),
    }


def write_run_json(folder: Path, description: dict[str, Any]) -> None:
    """Adds a start to `run.json` in ``folder``: a list, so that every resume is in it."""
    path = folder / "run.json"
    starts = json.loads(path.read_text()) if path.exists() else []
    write_text(path, json.dumps([*starts, description], indent=1) + "\n")


def is_first_rank() -> bool:
    """Whether this process is the one that writes; by the environment, before ranks are set up."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return all(rank == "0" for rank in ranks)


def command_line() -> list[str]:
    """The command line of this process, as typed."""
    return [Path(sys.executable).name, *sys.argv]


def _packages() -> list[tuple[str, str]]:
    heads = (_head(distribution) for distribution in metadata.distributions())
    return [(head["name"], head["version"]) for head in heads if {"name", "version"} <= head.keys()]


def _head(distribution: metadata.Distribution) -> dict[str, str]:
    """The first lines of its metadata, up to name and version: all of them take 0.1 s to parse."""
    head: dict[str, str] = {}
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        head.setdefault(key.strip().lower(), value.strip())
        if not line or {"name", "version"} <= head.keys():
            break
    return head


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
