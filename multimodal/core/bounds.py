"""Ranges of numbers as annotations, which can be checked before anything is built."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin


@dataclass(frozen=True)
class Bounds:
    """The range of a parameter: ``margin: Annotated[float, Bounds(least=0)]``.

    Attributes:
        least: the smallest number.
        above: every number is greater than this one.
        most: the largest number.
        below: every number is smaller than this one.
        noun: of the counted or measured quantity.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    noun: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number is in the range; NaN never is, and infinity only where it is a bound."""
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        noun = f"{self.noun} " if self.noun else ""
        if self.most is None and self.below is None:
            return noun + (
                f"at least {self.least}" if self.above is None else f"above {self.above}"
            )
        low = f"[{self.least:g}" if self.least is not None else f"({self.above:g}"
        high = f"{self.most:g}]" if self.most is not None else f"{self.below:g})"
        return f"{noun}in {low}, {high}"


AT_LEAST_0 = Bounds(least=0)
AT_LEAST_1 = Bounds(least=1)
ABOVE_0 = Bounds(above=0)
SHARE = Bounds(least=0, below=1)  # all of it is not a share


def broken(value: Any, annotation: Any) -> Bounds | None:
    """The range that a number is out of; None where it is in it, or there is none.

    Of ``Annotated[int, ...] | Annotated[float, ...]``, the range for the number's own type counts.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    ranges = dict(_ranges(annotation))
    bounds = ranges.get(type(value), ranges.get(float))
    return None if bounds is None or bounds.holds(value) else bounds


def _ranges(annotation: Any) -> Iterator[tuple[type, Bounds]]:
    if get_origin(annotation) is Annotated:
        for each in annotation.__metadata__:
            if isinstance(each, Bounds):
                yield get_args(annotation)[0], each
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _ranges(member)


def check_bounds(made: Any) -> None:
    """Holds the values of a dataclass's fields against the ranges in their annotations.

    Raises:
        ValueError: naming the field, the range and the value.
    """
    hints = typing.get_type_hints(type(made), include_extras=True)
    for name, annotation in hints.items():
        if bounds := broken(getattr(made, name, None), annotation):
            raise ValueError(f"{name} must be {bounds}, given {getattr(made, name)}")
