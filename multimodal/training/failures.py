"""Explains errors that a lost worker or rank has caused, and what to do."""

from __future__ import annotations

import re

from multimodal.core.errors import UserError

# Messages of torch and gloo, and what they mean for the user.
_CAUSES = (
    (
        r"DataLoader worker .* (killed by signal|exited unexpectedly)",
        "a DataLoader worker died. If it was killed (signal 9), the machine has probably run out "
        "of memory: lower data.num_workers or data.cache_mb",
    ),
    (
        r"DataLoader timed out after",
        "a DataLoader worker hangs: it returned nothing within data.worker_timeout_s. Check the "
        "storage of its shards, or raise that limit",
    ),
    (
        r"Connection (closed|reset) by peer|Broken pipe|[Tt]imed out waiting .*ms for (send|recv)|"
        r"Socket (closed|Timeout)|Connection was likely closed",
        "another rank has exited or is unreachable: see its own output",
    ),
)


class LostPartError(UserError, RuntimeError):
    """A process that the run depends on has died or hangs; says what to do."""


def explain(error: BaseException) -> str | None:
    """The explanation of an error that a lost worker or rank has caused; None for other errors."""
    text = f"{type(error).__name__}: {error}"
    for pattern, meaning in _CAUSES:
        if isinstance(error, RuntimeError) and re.search(pattern, text):
            return (
                f"the run has ended: {meaning}. Resume from the last checkpoint with the same "
                "command and resume=auto"
            )
    return None
