"""Portable paths for configs.

``samples://NAME`` is a file of the corpus inside the package, ``pretrained://NAME/FILE`` one of a
pretrained tower that was fetched.
"""

from __future__ import annotations

from pathlib import Path

from multimodal.core import pretrained_files

SAMPLES_PREFIX = "samples://"
SAMPLES_FOLDER = Path(__file__).parents[1] / "samples"


def resolve(path: str | Path) -> Path:
    """The local path of ``path``.

    Args:
        path: a file path, absolute or relative to the working directory, where ``~`` is the home
            folder; ``samples://NAME``, a file of the sample corpus; or ``pretrained://NAME/FILE``.

    Raises:
        ValueError: if given any other ``scheme://``, and for a name outside its folder.
        NotFetchedError: if a pretrained tower was not fetched.
    """
    text = str(path)
    if text.startswith(SAMPLES_PREFIX):
        target = (SAMPLES_FOLDER / text.removeprefix(SAMPLES_PREFIX)).resolve()
        if not target.is_relative_to(SAMPLES_FOLDER.resolve()):
            raise ValueError(f"{text!r} is outside of the sample corpus")
        return target
    if text.startswith(pretrained_files.PREFIX):
        return pretrained_files.file_of(text)
    if "://" in text:
        scheme = text.split("://", 1)[0]
        raise ValueError(f"cannot read {text!r}: {scheme}:// is unknown; give a local path")
    return Path(path).expanduser()
