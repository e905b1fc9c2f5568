"""Training whose weights are copied to every rank (DDP), with a limit on waiting for a rank."""

from __future__ import annotations

from datetime import timedelta

from pytorch_lightning.strategies import DDPStrategy


class ReplicatedStrategy(DDPStrategy):
    """DDP over all ranks.

    Args:
        timeout_s: seconds after which a collective that a rank does not join is an error.
        find_unused_parameters: whether a step may leave towers unused.
    """

    def __init__(self, timeout_s: float = 1800.0, find_unused_parameters: bool = True) -> None:
        if timeout_s <= 0:
            raise ValueError(f"trainer.strategy.timeout_s={timeout_s} must be above 0")
        super().__init__(
            timeout=timedelta(seconds=timeout_s), find_unused_parameters=find_unused_parameters
        )
