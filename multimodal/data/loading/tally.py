"""Counts delivered and bad samples, and enforces the limits on bad ones."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from multimodal.data.errors import TooManyBadSamplesError

log = logging.getLogger(__name__)

_TOLERATED_FROM = 1000  # samples: the fraction of bad ones means little before
_NAMED = 3  # places that an error names, and shards that a summary does


class Rejection(NamedTuple):
    """A skipped sample, and why.

    Attributes:
        source: name of its source.
        shard: name of its shard.
        key: its name in the shard.
        reason: the short word that it is counted by.
        message: the actual and the expected value.
        whole_shard: whether the shard is bad, and so all of its samples.
    """

    source: str
    shard: str
    key: str
    reason: str
    message: str
    whole_shard: bool = False

    def where(self) -> str:
        """Source, shard and key, for messages."""
        return f"{self.source}, shard {self.shard}, key {self.key!r}"


class SampleCounter:
    """Counts delivered and bad samples, and stops the run when too many are bad.

    Every place of a batch is counted once: its own sample is delivered, or it is bad and another
    one may have taken its place. So over an epoch in which each sample has one place, ``delivered``
    and ``bad`` sum to the number of samples, regardless of replacements.

    Args:
        max_bad_fraction: of all places met, but never counted of fewer than 1,000.
        max_bad_run: places in a row, in the order of the batches.

    Attributes:
        delivered: places that got their own sample.
        replaced: places whose own sample was bad and which got another.
        reasons: bad samples by reason; their sum is ``bad``.
        shards: bad samples by source and shard.

    Raises:
        ValueError: if ``max_bad_fraction`` is not in [0, 1] or ``max_bad_run`` under 1.
    """

    def __init__(self, max_bad_fraction: float = 0.01, max_bad_run: int = 100) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction must be in [0, 1], got {max_bad_fraction}")
        if max_bad_run < 1:
            raise ValueError(f"max_bad_run must be at least 1, got {max_bad_run}")
        self.max_bad_fraction = max_bad_fraction
        self.max_bad_run = max_bad_run
        self.delivered = 0
        self.replaced = 0
        self.reasons: Counter[str] = Counter()
        self.shards: Counter[str] = Counter()
        self._run = 0
        self._last: deque[Rejection] = deque(maxlen=_NAMED)
        self._epoch = (0, 0, Counter[str]())  # the counts at its beginning

    @property
    def bad(self) -> int:
        """Places whose own sample was bad."""
        return self.reasons.total()

    def add(self, outcomes: Iterable[Rejection | None], replaced: bool) -> None:
        """Counts the places of one batch, in order, and logs the bad ones.

        Args:
            outcomes: for each place None, or why its own sample is not there.
            replaced: whether another sample replaces a bad one.

        Raises:
            TooManyBadSamplesError: if a limit is passed; the message names shards and keys.
        """
        for rejection in outcomes:
            if rejection is None:
                self.delivered += 1
                self._run = 0
                continue
            self.replaced += replaced
            self.reasons[rejection.reason] += 1
            self.shards[f"{rejection.source}/{rejection.shard}"] += 1
            self._run += 1
            self._last.append(rejection)
            log.warning("bad sample of %s: %s", rejection.where(), rejection.message)
            self._check()

    def _check(self) -> None:
        met = self.delivered + self.bad
        if self.bad > self.max_bad_fraction * max(met, _TOLERATED_FROM):
            raise TooManyBadSamplesError(
                f"{self.bad} of {met} samples are bad ({self}), over "
                f"max_bad_fraction={self.max_bad_fraction:g}; {named(self._last)}"
            )
        if self._run > self.max_bad_run:
            raise TooManyBadSamplesError(
                f"{self._run} samples in a row are bad ({self}), over "
                f"max_bad_run={self.max_bad_run}; {named(self._last)}"
            )

    def end_epoch(self, epoch: int) -> None:
        """Logs the epoch's delivered samples, and the bad ones by reason."""
        delivered, replaced, reasons = self._epoch
        bad = self.reasons - reasons
        summary = (
            f"epoch {epoch}: {self.delivered - delivered} samples delivered, {bad.total()} bad"
        )
        if bad:
            worst = ", ".join(f"{name} ({n})" for name, n in self.shards.most_common(_NAMED))
            log.warning(
                "%s (%s), %d replaced; most so far in %s",
                summary,
                _listed(bad),
                self.replaced - replaced,
                worst,
            )
        else:
            log.info("%s", summary)
        self._epoch = (self.delivered, self.replaced, self.reasons.copy())

    def __str__(self) -> str:
        return _listed(self.reasons)


def named(rejections: Sequence[Rejection] | deque[Rejection]) -> str:
    """The last rejections as text: where, and why."""
    return "the last: " + "; ".join(f"{r.where()}: {r.message}" for r in rejections)


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
