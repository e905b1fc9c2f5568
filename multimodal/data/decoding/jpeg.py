"""JPEG decoding by libjpeg-turbo into pooled buffers; sizes in the headers of its relatives."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from multimodal.data.decoding.buffers import BufferPool

_POOL = BufferPool(4)
_SCAN, _APP1 = b"\xda", b"\xe1"  # kinds of segments
_SIZ = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 codestream and of its size segment
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # start-of-frame markers of JPEG(-LS)


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG in three colours that EXIF does not turn, from its header.

    None for all else, truncated or foreign files included: that is for Pillow to look at.
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


def coded_pixels(data: bytes) -> int:
    """Pixels that a JPEG, JPEG-LS or JPEG 2000 promises; 0 for all else."""
    if data[:2] == b"\xff\xd8":
        return _jpeg_pixels(data)
    return codestream_pixels(data)


def codestream_pixels(data: bytes) -> int:
    """Pixels of the grid of a JPEG 2000 codestream, which may differ from its container's."""
    marker = data.find(_SIZ)
    start = marker + len(_SIZ) + 4  # after the segment's length and capabilities
    width, height = (int.from_bytes(data[start + at : start + at + 4], "big") for at in (0, 4))
    return width * height if marker >= 0 else 0


def _jpeg_pixels(data: bytes) -> int:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xFF:  # fill
            at += 1
            continue
        if data[at + 1] in _FRAMES:
            height, width = (int.from_bytes(data[at + n : at + n + 2], "big") for n in (5, 7))
            return width * height
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0
