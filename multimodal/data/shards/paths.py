"""Portable paths for configs: ``samples://NAME`` is a file of the corpus inside the package."""

from __future__ import annotations

from pathlib import Path

SAMPLES_PREFIX = "samples://"
SAMPLES_FOLDER = Path(__file__).parents[1] / "samples"


def resolve(path: str | Path) -> Path:
    """The local path of ``path``.

    Args:
        path: a file path, absolute or relative to the working directory, where ``~`` is the home
            folder; or ``samples://NAME``, a file of the sample corpus.

    Raises:
        ValueError: if given any other ``scheme://``, and for a ``samples://`` name outside its
            folder.
    """
    text = str(path)
    if text.startswith(SAMPLES_PREFIX):
        target = (SAMPLES_FOLDER / text.removeprefix(SAMPLES_PREFIX)).resolve()
        if not target.is_relative_to(SAMPLES_FOLDER.resolve()):
            raise ValueError(f"{text!r} is outside of the sample corpus")
        return target
    if "://" in text:
        scheme = text.split("://", 1)[0]
        raise ValueError(f"cannot read {text!r}: {scheme}:// is unknown; give a local path")
    return Path(path).expanduser()
