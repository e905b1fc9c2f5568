"""A small LRU cache, which is never sent to other processes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LRU(Generic[Key, Value]):
    """Keeps the most recently used values; pickles as an empty cache.

    Args:
        size: the most that the values kept may cost together.
        cost: of one value; 1 each if not given.
    """

    def __init__(self, size: int, cost: Callable[[Value], int] | None = None) -> None:
        self._size = size
        self._cost = cost
        self._spent = 0
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[Key], Value]) -> Value:
        """The value kept under ``key``, or ``make(key)``, which is then kept."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make(key)
        self._spent += self._cost(value) if self._cost else 1
        while self._spent > self._size:
            _, oldest = self._values.popitem(last=False)
            self._spent -= self._cost(oldest) if self._cost else 1
        return value

    def __reduce__(self) -> tuple[type[LRU[Key, Value]], tuple[Any, ...]]:
        return type(self), (self._size, self._cost)
