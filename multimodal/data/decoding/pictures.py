"""Pictures by libjpeg-turbo and Pillow; sizes are judged from headers, before decoding."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from multimodal.core.extras import module_of
from multimodal.data.decoding.jpeg import codestream_pixels, decode_jpeg, plain_size
from multimodal.data.decoding.tiff import decode_tiff, is_tiff, picture_of
from multimodal.data.decoding.values import Limits, Request
from multimodal.data.errors import DecodeError

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_ORIENTATION = 0x0112  # the EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # its values that turn a picture by a quarter
# Tags of TIFF.
_BITS, _SAMPLES, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT = 258, 277, 322, 323, 339


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
    if request.kind == "array":
        return _as_array(data, request)
    if (plain := plain_size(data)) is not None:
        limits.check("max_pixels", plain[0] * plain[1])
        enough = plain if request.min_size is None else request.min_size(*plain)
        return decode_jpeg(data, *plain, enough)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what damages a picture becomes a reason
        return _by_pillow(data, request)


def picture_size(data: bytes, limits: Limits) -> tuple[int, int]:
    """Height and width of what ``decode_picture`` returns, where possible from the header.

    Raises:
        DecodeError: if it is too large, damaged, or no picture.
    """
    if (plain := plain_size(data)) is not None:
        return plain
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_tiff(data):
                height, width = decode_picture(data, Request("image", limits)).shape[:2]
                return height, width
            image = _open(data, limits)
            turned = image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS
    except DecodeError:
        raise
    except Exception as error:  # libraries raise all sorts of errors on damaged input
        raise DecodeError("corrupt", f"{type(error).__name__}: {error}") from error
    return (image.width, image.height) if turned else (image.height, image.width)


def _by_pillow(data: bytes, request: Request) -> NDArray[Any]:
    try:
        image = _open(data, request.limits)
    except UnidentifiedImageError:
        if not is_tiff(data):
            raise
        return picture_of(decode_tiff(data, request))
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _has_more(image):
        return picture_of(decode_tiff(data, request))
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _is_uint32(image):
        return picture_of(pixels_of(image).view(np.uint32))
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


def _is_uint32(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether a TIFF holds unsigned numbers of 32 bits, which Pillow takes for signed ones."""
    formats = image.tag_v2.get(_SAMPLE_FORMAT, (1,))
    return image.mode == "I" and image.tag_v2.get(_BITS) == (32,) and formats[0] == 1


def _has_more(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether a TIFF holds bands or slices of which Pillow would show the first."""
    if image.tag_v2.get(_SAMPLES, 1) > len(image.getbands()):
        return True
    size = image.size
    try:
        image.seek(1)
    except EOFError:
        return False
    equal = image.size == size  # those of a thumbnail or pyramid are not
    image.seek(0)
    return equal


def _as_array(data: bytes, request: Request) -> NDArray[Any]:
    """The numbers as stored: ``[H, W]``, of several channels ``[channels, H, W]``."""
    if is_tiff(data):
        return decode_tiff(data, request)
    values = np.array(_open(data, request.limits))
    return values if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))


def _open(data: bytes, limits: Limits) -> Image.Image:
    """The picture, of which only the header has been read."""
    if _is_heic(data):
        return _open_heic(data, limits)
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
        limits.check("max_pixels", codestream_pixels(data))
    return image


def _is_heic(data: bytes) -> bool:
    """Whether it is HEIF with HEVC inside, also under another extension, as phones send it."""
    brands = data[8 : int.from_bytes(data[:4], "big")]
    return data[4:8] == b"ftyp" and any(brand in brands for brand in _HEIC_BRANDS)


def _open_heic(data: bytes, limits: Limits) -> Image.Image:
    pillow_heif = module_of("heic", "pillow_heif", "decoding HEIC")
    file = pillow_heif.open_heif(io.BytesIO(data))
    limits.check("max_pixels", file.size[0] * file.size[1])
    image: Image.Image = file.to_pillow()  # turned upright
    return image
