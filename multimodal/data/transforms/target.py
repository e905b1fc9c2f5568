"""What a task predicts: classes, sets of labels, numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.base import Stacked


class LabelTransform(Stacked):
    """The place of a class among ``classes``: a target, or a categorical modality.

    Args:
        classes: their names, or numbers, as the metadata have them.

    Raises:
        ValueError: if given fewer than two, or equal ones.
    """

    def __init__(self, classes: Sequence[str | int]) -> None:
        self._places = _places(classes)
        self.num_classes = len(self._places)
        self.shape, self.dtype = (), torch.int64

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """An int64 scalar.

        Raises:
            DecodeError: if the value is none of the classes.
        """
        if isinstance(value, bool) or not isinstance(value, str | int) or value not in self._places:
            raise DecodeError("label", f"expected one of {list(self._places)}, got {value!r}")
        return torch.tensor(self._places[value])


class LabelSetTransform(Stacked):
    """Which of ``classes`` a sample has: the target of a multi-label task.

    Args:
        classes: the labels' names, as the metadata have them.

    Raises:
        ValueError: if given fewer than two, or equal ones.
    """

    def __init__(self, classes: Sequence[str | int]) -> None:
        self._places = _places(classes)
        self.num_classes = len(self._places)
        self.shape = (self.num_classes,)

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """float32 ``[C]`` of 0 and 1.

        Raises:
            DecodeError: if the value is not a list of these labels.
        """
        if not isinstance(value, list) or not all(
            isinstance(label, str | int) and label in self._places for label in value
        ):
            raise DecodeError("label", f"expected some of {list(self._places)}, got {value!r}")
        labels = torch.zeros(len(self._places))
        labels[[self._places[label] for label in value]] = 1.0
        return labels


class NumberTransform(Stacked):
    """One number or several, standardised: the target of a regression.

    Args:
        outputs: how many.
        mean: subtracted.
        std: divides, above 0.

    Raises:
        ValueError: if given fewer than one output, or a deviation that is not above 0.
    """

    def __init__(self, outputs: int = 1, mean: float = 0.0, std: float = 1.0) -> None:
        if outputs < 1 or not std > 0:
            raise ValueError(f"outputs={outputs} and std={std} must be above 0")
        self.outputs = outputs
        self.shape = (outputs,)
        self.mean = mean
        self.std = std

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """float32 ``[outputs]``.

        Raises:
            DecodeError: if the value is not that many finite numbers.
        """
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) != self.outputs or not all(
            isinstance(number, int | float) and not isinstance(number, bool) for number in numbers
        ):
            raise DecodeError("label", f"expected {self.outputs} numbers, got {value!r}")
        if not all(math.isfinite(number) for number in numbers):
            raise DecodeError("not_finite", f"expected finite numbers, got {value!r}")
        return (torch.tensor(numbers, dtype=torch.float32) - self.mean) / self.std


def _places(classes: Sequence[str | int]) -> dict[str | int, int]:
    places = {name: index for index, name in enumerate(classes)}
    if len(places) < 2 or len(places) < len(classes):
        raise ValueError(f"classes={list(classes)}: expected two or more different ones")
    return places
