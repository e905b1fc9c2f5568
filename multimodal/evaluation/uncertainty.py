"""Whether a figure is distinguishable from a score without any understanding.

That is chance, the commonest answer of a classification, and the length of a sound alone. A figure
whose 95 % interval (`core/bootstrap.py`) reaches one of them is marked in the terminal, in
``metrics.json`` (``not_above``) and in the report, and is nowhere coloured as a success.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from multimodal.core.bootstrap import Interval

if TYPE_CHECKING:
    from multimodal.models.tasks.scores import Scores

CHANCE, MAJORITY, DURATION = "chance", "majority", "duration_only"
NAMES = {CHANCE: "chance", MAJORITY: "commonest answer", DURATION: "length alone"}
ERRORS = frozenset(("mae", "rmse", "perplexity"))  # metrics that are better when lower

MARK = "≈"
LEGEND = (
    f"In brackets: 95 % interval over the samples (bootstrap). {MARK}: it reaches what chance, the "
    "commonest answer or the length of a sound alone scores."
)

_EQUAL = 1e-9  # what a collapsed model scores equals chance up to rounding


def not_above(interval: Interval, references: Mapping[str, float], metric: str = "") -> list[str]:
    """Names of the ``references`` that ``interval`` reaches, or lies on the worse side of.

    Args:
        interval: of the figure.
        references: name -> what it scores.
        metric: of the figure; one of `ERRORS` is better when lower.
    """
    if metric in ERRORS:
        return [name for name, value in references.items() if not interval.high < value - _EQUAL]
    return [name for name, value in references.items() if not interval.low > value + _EQUAL]


def reached(scores: Scores, metric: str) -> list[str]:
    """Whether a metric is distinguishable from chance: ``["chance"]`` if it is not."""
    interval, chance = scores.interval(metric), scores.chance.get(metric)
    if interval is None or chance is None:
        return []
    return not_above(interval, {CHANCE: chance}, metric)


def mark(reached: Collection[str]) -> str:
    """``≈ chance``; empty where nothing is reached."""
    return f"{MARK} {', '.join(NAMES[name] for name in reached)}" if reached else ""


def percents(interval: Interval) -> str:
    """``9.3–20.0``, of fractions, in percent."""
    return f"{100 * interval.low:.1f}–{100 * interval.high:.1f}"


def decimals(interval: Interval) -> str:
    """``0.713–0.802``."""
    return f"{interval.low:.3f}–{interval.high:.3f}"
