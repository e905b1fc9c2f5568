"""What an error means that a part of the run has caused by dying, and what to do then."""

from __future__ import annotations

import re

from multimodal.core.errors import UserError

# Torch's and gloo's words, and what they mean to who has started the run.
_CAUSES = (
    (
        r"DataLoader worker .* (killed by signal|exited unexpectedly)",
        "a process that loads data has died. Where it was killed (signal 9), the machine has "
        "probably run out of memory: lower data.num_workers or data.cache_mb",
    ),
    (
        r"DataLoader timed out after",
        "a process that loads data hangs: it has brought nothing for data.worker_timeout_s. Look "
        "at the storage that its shards are on, or raise that limit",
    ),
    (
        r"Connection (closed|reset) by peer|Broken pipe|[Tt]imed out waiting .*ms for (send|recv)|"
        r"Socket (closed|Timeout)|Connection was likely closed",
        "another rank has ended or cannot be reached: its own output says why",
    ),
)


class LostPartError(UserError, RuntimeError):
    """A process that the run depends on has died or hangs; says what to do."""


def explained(error: BaseException) -> str | None:
    """What to tell of an error that a lost worker or rank has caused; None of another one."""
    text = f"{type(error).__name__}: {error}"
    for pattern, meaning in _CAUSES:
        if isinstance(error, RuntimeError) and re.search(pattern, text):
            return (
                f"the run has ended: {meaning}. Go on from the last checkpoint by the same command "
                "with resume=auto"
            )
    return None
