"""Errors of single samples, which the loader counts, logs and skips."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multimodal.core.errors import UserError
from multimodal.core.imports.former import former

if not TYPE_CHECKING:
    __getattr__ = former(__name__)


class BadSampleError(UserError):
    """A sample that cannot be read.

    Attributes:
        reason: a short word that rejections are counted by.
        detail: the actual and the expected value.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # as given, so that the error survives pickling
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class DecodeError(BadSampleError):
    """A member or value of a sample is missing, corrupt, too large or not what was expected."""


class ShardError(BadSampleError):
    """A shard is missing, cut, not what the manifest says, or no well-formed tar.

    All of its samples are bad then. Reasons: ``shard_missing``, ``shard_cut``, ``shard_size``,
    ``shard_hash``, ``shard_count``, ``shard_format``.

    Attributes:
        shard: path of the shard.
        offset: byte offset of the error in the shard.
    """

    def __init__(self, shard: str, offset: int, detail: str, reason: str = "shard_format") -> None:
        super().__init__(reason, detail)
        self.args = (shard, offset, detail, reason)
        self.shard = shard
        self.offset = offset

    def __str__(self) -> str:
        return f"shard {self.shard}, byte {self.offset}: {self.detail}"


class TooManyBadSamplesError(UserError, RuntimeError):
    """More bad samples, or more consecutive ones, than the run allows."""


class DataMismatchError(UserError, ValueError):
    """The next batches would differ from those of the resumed run; the message says what to set."""
