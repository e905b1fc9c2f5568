"""Packages of the extras: imported where a feature needs one, missed by the extra's name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from multimodal.core.errors import MissingExtraError


@contextmanager
def extra_needed(extra: str, user: str) -> Iterator[None]:
    """Within, a package that is not installed is a `MissingExtraError`.

    Args:
        extra: that installs it.
        user: what needs it, as the subject of the message.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"{user} needs an extra that is not installed ({error}): "
            f"pip install 'multimodal[{extra}]'"
        ) from error


def module_of(extra: str, name: str, user: str) -> Any:
    """The module ``name``, which ``extra`` installs.

    Raises:
        MissingExtraError: if it is not installed; says that ``user`` needs it.
    """
    with extra_needed(extra, user):
        return importlib.import_module(name)
