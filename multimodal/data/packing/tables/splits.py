"""Names of splits, as people write them in files, folders and columns."""

from __future__ import annotations

import re

_SPLITS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_named(name: str) -> str | None:
    """The split that a folder or a value names; None if it names none."""
    return _SPLITS.get(name.strip().lower())


def split_in_name(name: str) -> str:
    """The split in a shard's name: ``val`` or ``test``, otherwise ``train``."""
    words = re.split(r"[^a-z]+", name.lower())
    splits = (_SPLITS.get(word) for word in words)
    return next((split for split in splits if split not in (None, "train")), None) or "train"
