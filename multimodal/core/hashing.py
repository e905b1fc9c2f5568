"""Hashes that are the same in every process, on every machine: ids, seeds, random choices."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterator

import numpy as np


def stable_hash(*parts: str | int | float | bytes) -> int:
    """A signed 64-bit integer from ``parts``; unlike ``hash()`` it never changes between runs.

    Types count: ``stable_hash(1)`` differs from ``stable_hash("1")``.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def generator(*parts: str | int | float | bytes) -> np.random.Generator:
    """A numpy generator keyed by ``parts``, independent of every global RNG and of the process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def uniform_stream(*parts: str | int | float | bytes) -> Iterator[float]:
    """Endless uniform numbers in [0, 1), keyed by ``parts``: for a few, a tenth of a generator."""
    for block in itertools.count():
        digest = hashlib.blake2b(repr((*parts, block)).encode(), digest_size=64).digest()
        for integer in struct.unpack("<8Q", digest):
            yield (integer >> 11) * 2.0**-53
