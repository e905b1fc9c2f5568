"""What can be wrong with one sample: errors that the loader counts, logs and steps over."""

from __future__ import annotations

from multimodal.core.errors import UserError


class BadSample(UserError):
    """A sample that cannot be delivered.

    Attributes:
        reason: a short word that rejections are counted by.
        detail: what was found and what was expected.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # as given, so that the error survives pickling
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class DecodeError(BadSample):
    """A member or value of a sample is missing, corrupt, too large or not what was expected."""


class ShardError(BadSample):
    """A shard is missing, cut, not what the manifest says, or no well-formed tar.

    All of its samples are bad then. Reasons: ``shard_missing``, ``shard_cut``, ``shard_size``,
    ``shard_hash``, ``shard_count``, ``shard_format``.

    Attributes:
        shard: path of the shard.
        offset: byte in the shard at which the fault was found.
    """

    def __init__(self, shard: str, offset: int, detail: str, reason: str = "shard_format") -> None:
        super().__init__(reason, detail)
        self.args = (shard, offset, detail, reason)
        self.shard = shard
        self.offset = offset

    def __str__(self) -> str:
        return f"shard {self.shard}, byte {self.offset}: {self.detail}"


class TooManyBadSamples(UserError, RuntimeError):
    """More samples are bad, or more of them in a row, than the run allows."""


class OtherBatches(UserError, ValueError):
    """The batches to come would not be those of the run that is to go on; says what to set."""
