"""A small cache that forgets what was used longest ago, and never travels to other processes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LRU(Generic[Key, Value]):
    """Keeps the ``size`` most recently used values; pickles as an empty cache."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[Key], Value]) -> Value:
        """The value kept under ``key``, or ``make(key)``, which is then kept."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make(key)
        if len(self._values) > self._size:
            self._values.popitem(last=False)
        return value

    def __reduce__(self) -> tuple[type[LRU[Key, Value]], tuple[int]]:
        return type(self), (self._size,)
