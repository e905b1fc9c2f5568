"""Pictures by libjpeg-turbo and Pillow; sizes are judged from headers, before decoding."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin

from multimodal.data.decoding.jpeg import decode_jpeg, plain_size
from multimodal.data.decoding.values import Limits, Request
from multimodal.data.errors import DecodeError

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112  # the EXIF tag
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # of TIFF
_SIZ = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 codestream and of its size segment


def decode_picture(data: bytes, request: Request) -> NDArray[Any]:
    """A picture, turned upright by EXIF, the first of an animation or of several pages.

    Returns:
        uint8 ``[H, W, 3]``, on white where it is transparent; of one channel with more than 8 bits
        ``[H, W]`` of uint16, int32 or float32, as stored.

    Raises:
        DecodeError: if it is too large.
        Exception: the libraries' own, if it is damaged or no picture.
    """
    limits = request.limits
    if (plain := plain_size(data)) is not None:
        limits.check("max_pixels", plain[0] * plain[1])
        enough = plain if request.min_size is None else request.min_size(*plain)
        return decode_jpeg(data, *plain, enough)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what damages a picture becomes a reason
        return _by_pillow(data, request)


def _by_pillow(data: bytes, request: Request) -> NDArray[Any]:
    image = _open(data, request.limits)
    turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) != 1
    if image.format == "JPEG" and image.mode == "RGB" and not turned:
        size = image.height, image.width
        return decode_jpeg(
            data, *size, size if request.min_size is None else request.min_size(*size)
        )
    return pixels_of(image)


def pixels_of(image: Image.Image) -> NDArray[Any]:
    """The pixels of an opened picture, as ``decode_picture`` returns them."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":  # "I;16", "I;16B", "I" or "F"
        values = np.array(image)
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _open(data: bytes, limits: Limits) -> Image.Image:
    """The picture, of which only the header has been read."""
    # Pillow has its own, fixed limit, which raises while the header is read.
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise DecodeError("too_large", str(error)) from error
    limits.check("max_pixels", image.width * image.height)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # A tile is decoded whole, however little of it the picture shows.
        tile = [image.tag_v2.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
        limits.check("max_pixels", tile[0] * tile[1])
    if image.format == "JPEG2000":
        limits.check("max_pixels", _codestream_pixels(data))
    return image


def _codestream_pixels(data: bytes) -> int:
    """Pixels of the grid of a JPEG 2000 codestream, which may differ from its container's."""
    start = data.find(_SIZ) + len(_SIZ) + 4  # after the segment's length and capabilities
    width, height = (int.from_bytes(data[start + at : start + at + 4], "big") for at in (0, 4))
    return width * height
