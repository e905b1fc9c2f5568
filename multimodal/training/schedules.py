"""Learning rates over the steps of a run: each a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def _require_end(max_steps: int) -> None:
    if max_steps < 1:
        raise ValueError(
            f"scheduler.max_steps={max_steps}: the schedule must know its end; set "
            "trainer.max_steps, or scheduler=constant"
        )


def _require_share(name: str, value: float, *, one: bool) -> None:
    if not 0 <= value <= 1 or (value == 1 and not one):
        raise ValueError(f"scheduler.{name}={value} must be in [0, 1{']' if one else ')'}")


def _require_steps(name: str, value: int, least: int = 0) -> None:
    if value < least:
        raise ValueError(f"scheduler.{name}={value} must be at least {least}")


def _after_warmup(warmup: int, ratio: Callable[[int], float]) -> Callable[[int], float]:
    """A linear rise over the first ``warmup`` steps, of which the first already learns."""
    return lambda step: (step + 1) / (warmup + 1) if step < warmup else ratio(step)


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _line(progress: float) -> float:
    return 1.0 - progress


def _one_minus_sqrt(progress: float) -> float:
    return 1.0 - math.sqrt(progress)


_SHAPES: dict[str, Callable[[float], float]] = {
    "sqrt": _one_minus_sqrt,
    "linear": _line,
    "cosine": _cosine,
}


class _Warmup(LambdaLR):
    """Linear warm-up, then `fall` from the peak to ``min_ratio`` of it at ``max_steps``.

    Args:
        optimizer: its groups' ``lr`` are the peaks.
        max_steps: the optimizer step at which the fall ends.
        warmup_fraction: in [0, 1); share of ``max_steps`` in which the rate rises to its peak.
            The first step already learns.
        min_ratio: in [0, 1]; the last learning rate over the peak.

    Raises:
        ValueError: if a number is out of its range.
    """

    fall: Callable[[float], float]  # progress in [0, 1] -> share of the way that is left

    def __init__(
        self,
        optimizer: Optimizer,
        max_steps: int,
        warmup_fraction: float = 0.1,
        min_ratio: float = 0.0,
    ) -> None:
        _require_end(max_steps)
        _require_share("warmup_fraction", warmup_fraction, one=False)
        _require_share("min_ratio", min_ratio, one=True)
        warmup = round(warmup_fraction * max_steps)
        fall = type(self).fall

        def ratio(step: int) -> float:
            progress = min(1.0, (step - warmup) / (max_steps - warmup))
            return min_ratio + (1.0 - min_ratio) * fall(progress)

        super().__init__(optimizer, _after_warmup(warmup, ratio))


class WarmupCosine(_Warmup):
    """Linear warm-up, then half a cosine down to ``min_ratio`` of the peak (arXiv:1608.03983)."""

    fall = staticmethod(_cosine)


class WarmupLinear(_Warmup):
    """Linear warm-up, then a line down to ``min_ratio`` of the peak."""

    fall = staticmethod(_line)


class InverseSqrt(LambdaLR):
    """Linear warm-up, then the peak times sqrt(warmup_steps / step): it has no end.

    Vaswani et al. 2017 (arXiv:1706.03762, section 5.3); Zhai et al. 2022 (arXiv:2106.04560,
    section 3.5) train vision towers with it, since any step may become the last one.

    Args:
        optimizer: its groups' ``lr`` are the peaks.
        warmup_steps: at least 1; also the time scale of the decay.

    Raises:
        ValueError: if ``warmup_steps`` is below 1.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int) -> None:
        _require_steps("warmup_steps", warmup_steps, least=1)
        super().__init__(
            optimizer,
            _after_warmup(warmup_steps, lambda step: math.sqrt(warmup_steps / step)),
        )


class WarmupStableDecay(LambdaLR):
    """Linear warm-up, the peak, and a decay over the last steps (arXiv:2405.18392).

    The rate before the decay does not depend on where the run ends, so that any checkpoint of the
    stable phase can be cooled down: resume it with ``trainer.max_steps`` at its step plus
    ``decay_steps``.

    Args:
        optimizer: its groups' ``lr`` are the peaks.
        max_steps: the optimizer step at which the decay ends.
        warmup_steps: steps in which the rate rises to its peak.
        decay_steps: length of the decay; None: a fifth of ``max_steps``.
        min_ratio: in [0, 1]; the last learning rate over the peak.
        shape: ``sqrt``, 1 - sqrt(progress), the best of those compared there; ``linear``;
            ``cosine``.

    Raises:
        ValueError: if a number is out of its range, or warm-up and decay do not fit in.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_steps: int,
        warmup_steps: int = 0,
        decay_steps: int | None = None,
        min_ratio: float = 0.0,
        shape: str = "sqrt",
    ) -> None:
        _require_end(max_steps)
        _require_steps("warmup_steps", warmup_steps)
        length = max(1, round(0.2 * max_steps)) if decay_steps is None else decay_steps
        _require_steps("decay_steps", length, least=1)
        _require_share("min_ratio", min_ratio, one=True)
        if shape not in _SHAPES:
            raise ValueError(f"scheduler.shape={shape!r}: expected one of {sorted(_SHAPES)}")
        if warmup_steps + length > max_steps:
            raise ValueError(
                f"scheduler: {warmup_steps} steps of warm-up and {length} of decay do not fit in "
                f"max_steps={max_steps}; shorten one of them"
            )
        begin, fall = max_steps - length, _SHAPES[shape]

        def ratio(step: int) -> float:
            progress = min(1.0, max(0.0, (step - begin) / length))
            return min_ratio + (1.0 - min_ratio) * fall(progress)

        super().__init__(optimizer, _after_warmup(warmup_steps, ratio))


class Constant(LambdaLR):
    """The peak learning rate throughout, after a linear warm-up of ``warmup_steps``.

    Raises:
        ValueError: if ``warmup_steps`` is negative.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 0) -> None:
        _require_steps("warmup_steps", warmup_steps)
        super().__init__(optimizer, _after_warmup(warmup_steps, lambda step: 1.0))
