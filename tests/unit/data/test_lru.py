from __future__ import annotations

import pickle

import pytest

from multimodal.data.lru import LRU


def test_what_was_used_longest_ago_is_forgotten_first():
    made = []
    cache: LRU[int, int] = LRU(2)

    def square(key):
        made.append(key)
        return key * key

    assert [cache.get(key, square) for key in (1, 2, 1, 3, 1, 2)] == [1, 4, 1, 9, 1, 4]
    assert made == [1, 2, 3, 2]


def test_values_may_cost_differently():
    made = []
    cache: LRU[str, str] = LRU(6, cost=len)

    def double(key):
        made.append(key)
        return key * 2

    for key in ("a", "bb", "a", "bb", "c", "a", "bb"):
        assert cache.get(key, double) == key * 2
    assert made == ["a", "bb", "c", "a", "bb"]
    assert cache.get("too long", double) == "too longtoo long"
    assert cache.get("a", double) == "aa"
    assert made[-2:] == ["too long", "a"]


def test_a_failure_leaves_nothing_behind():
    cache: LRU[int, float] = LRU(2)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            cache.get(0, lambda key: 1 / key)
    assert cache.get(0, float) == 0.0


def test_a_cache_travels_empty():
    cache: LRU[int, int] = LRU(2)
    cache.get(1, lambda key: 10)
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.get(1, lambda key: 20) == 20
    assert cache.get(1, lambda key: 20) == 10
