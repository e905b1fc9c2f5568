"""JPEGs by libjpeg-turbo, into memory that is used again as soon as nobody looks at it."""

from __future__ import annotations

import sys

import numpy as np
import simplejpeg
from numpy.typing import NDArray


class _Pool:
    """A few buffers. A picture in use holds a reference to its own, which nobody else then gets."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffers = [np.empty(0, np.uint8)]
        self._unused = self._references(0)

    def _references(self, place: int) -> int:
        return sys.getrefcount(self._buffers[place])

    def take(self, length: int) -> NDArray[np.uint8]:
        """A buffer of at least ``length`` bytes that no picture lies in."""
        free = [n for n in range(len(self._buffers)) if self._references(n) == self._unused]
        for place in free:
            if len(self._buffers[place]) >= length:
                return self._buffers[place]
        if free:
            del self._buffers[free[0]]
        buffer = np.empty(length, np.uint8)
        self._buffers.append(buffer)
        del self._buffers[: -self._size]
        return buffer


_POOL = _Pool(4)


def decode_jpeg(data: bytes, height: int, width: int, least: tuple[int, int]) -> NDArray[np.uint8]:
    """RGB pixels ``[H, W, 3]``, equal to Pillow's unless reduced.

    Reduced pictures come from fewer of the DCT's coefficients: half, a quarter or another n / 8 of
    the sides, which saves most of the decoding.

    Args:
        data: a JPEG in colour.
        height: in its header.
        width: in its header.
        least: the smallest height and width that will do; ``(height, width)`` for the whole.

    Raises:
        ValueError: if it is cut or broken.
    """
    smallest_height, smallest_width = (
        min(*pair) for pair in zip(least, (height, width), strict=True)
    )
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data,
        "RGB",
        min_height=0 if smallest_height == height else smallest_height,
        min_width=0 if smallest_width == width else smallest_width,
        buffer=_POOL.take(height * width * 3),
    )
    return pixels
