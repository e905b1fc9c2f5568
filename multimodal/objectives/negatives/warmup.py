"""The warm-up that every strategy may have: it begins as in-batch, and comes in step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from multimodal.core.bounds import AT_LEAST_0, check_bounds


@dataclass(frozen=True, kw_only=True)
class WarmsUp:
    """Base of the strategies but `InBatch`, which they begin as.

    Over the first ``warmup_steps`` steps a pair's loss is a mix of two, ``1 - w`` of the loss with
    all negatives and ``w`` of the loss with the strategy's, with ``w`` rising linearly from 0. It
    is the loss that is mixed and no weight of a negative, so that losses without weights can warm
    up too. ``w`` is a function of the step's number alone: ranks agree on it, and a run that is
    resumed goes on with it.

    Args:
        warmup_steps: of the schedule (batches); 0 for none.
    """

    warmup_steps: Annotated[int, AT_LEAST_0] = 0

    def __post_init__(self) -> None:
        check_bounds(self)


def strength(negatives: Any, step: int) -> float:
    """The strategy's part ``w`` in the loss of a training step, 0 to 1.

    Args:
        negatives: any strategy; one without ``warmup_steps`` has no warm-up.
        step: the batch's position in the schedule, from 0.
    """
    steps = getattr(negatives, "warmup_steps", 0)
    return min(1.0, step / steps) if steps else 1.0
