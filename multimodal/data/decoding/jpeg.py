"""JPEG decoding by libjpeg-turbo into pooled buffers."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from multimodal.data.decoding.buffers import BufferPool

_POOL = BufferPool(4)
_SCAN, _APP1 = b"\xda", b"\xe1"  # kinds of segments


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG in three colours that EXIF does not turn, from its header.

    None for all else, also for what is cut or no JPEG: that is for Pillow to look at.
    """
    if not data.startswith(b"\xff\xd8\xff") or _may_have_exif(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (height, width) if colours in ("YCbCr", "RGB") else None


def _may_have_exif(data: bytes) -> bool:
    """Whether one of the segments before the picture is EXIF, or they are not in order."""
    position = 2
    while data[position : position + 1] == b"\xff":
        kind = data[position + 1 : position + 2]
        if kind == _SCAN:
            return False
        if kind == _APP1 and data[position + 4 : position + 8] == b"Exif":
            return True
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return True


def decode_jpeg(
    data: bytes, height: int, width: int, min_size: tuple[int, int]
) -> NDArray[np.uint8]:
    """RGB pixels ``[H, W, 3]``, equal to Pillow's unless reduced.

    Reduced pictures have a half, a quarter or an eighth of the sides, and come of as many of the
    DCT's coefficients. (There are other fractions, but slower than the whole.)

    Args:
        data: a JPEG in colour.
        height: in its header.
        width: in its header.
        min_size: the smallest sufficient height and width; ``(height, width)`` for full size.

    Raises:
        ValueError: if it is cut or broken.
    """
    smallest = 0, 0
    for part in (8, 4, 2):
        reduced = -(-height // part), -(-width // part)
        if reduced[0] >= min_size[0] and reduced[1] >= min_size[1]:
            smallest = reduced
            break
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data,
        "RGB",
        min_height=smallest[0],
        min_width=smallest[1],
        buffer=_POOL.take(height * width * 3),
    )
    return pixels
