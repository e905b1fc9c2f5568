"""TIFF of many bands, of a volume, or of numbers that Pillow does not know, by tifffile."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimodal.core.extras import module_of
from multimodal.data.decoding.values import Limits, Request, eight_bits
from multimodal.data.errors import DecodeError

_MAX_PAGES = 65_536


def is_tiff(data: bytes) -> bool:
    """Whether these are the first bytes of a TIFF or BigTIFF."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def decode_tiff(data: bytes, request: Request) -> NDArray[Any]:
    """The numbers of a TIFF's first series: bands before rows and columns.

    Returns:
        ``[H, W]``, ``[bands, H, W]``, ``[slices, H, W]`` or more axes, of the file's type.

    Raises:
        DecodeError: if it is too large, or does not hold real numbers.
        MissingExtraError: if tifffile is not installed.
        Exception: tifffile's own, if it is damaged.
    """
    tifffile = module_of("tiff", "tifffile", "decoding a TIFF of many bands or slices")
    # Its decoders stop at a strip's size; those that tifffile falls back to do not.
    module_of("tiff", "imagecodecs", "decoding a TIFF of many bands or slices")
    # As OME it might name other files.
    with tifffile.TiffFile(io.BytesIO(data), is_ome=False, _multifile=False) as file:
        if len(file.pages) > _MAX_PAGES:
            raise DecodeError("too_large", f"a TIFF of {len(file.pages)} pages")
        series = file.series[0]
        _check_size(series, request.limits)
        values, axes = series.asarray(maxworkers=1), series.axes
    if values.dtype.kind not in "biuf":
        raise DecodeError("unsupported", f"an array of {values.dtype}: only numbers are read")
    if "S" in axes and axes.index("S") > axes.index("Y"):
        values = np.moveaxis(values, axes.index("S"), axes.index("Y"))
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def picture_of(bands: NDArray[Any]) -> NDArray[Any]:
    """A TIFF's numbers as a picture: ``[H, W]``, or uint8 ``[H, W, 3]`` of three bands.

    Raises:
        DecodeError: if there are more bands, or slices.
    """
    if bands.ndim == 2:
        return _plain(bands)
    if bands.ndim == 3 and len(bands) == 3:
        return np.ascontiguousarray(eight_bits(_plain(bands)).transpose(1, 2, 0))
    raise DecodeError(
        "unsupported",
        f"a TIFF {list(bands.shape)} of {bands.dtype} is not a picture: say that the member holds "
        "an array (when packing: --kind tif=array)",
    )


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """The same numbers as uint8, uint16, int32 or float32, the first that holds them."""
    if values.dtype in (np.uint8, np.uint16):
        return values
    if values.dtype.kind in "biu" and values.size:
        bounds = np.iinfo(np.int32)
        if bounds.min <= values.min() and values.max() <= bounds.max:
            return values.astype(np.int32)
    return values.astype(np.float32)


def _check_size(series: Any, limits: Limits) -> None:
    size = series.dtype.itemsize
    limits.check("max_array_bytes", math.prod(series.shape) * size)
    for page in series.pages:
        if page is not None and hasattr(page, "chunks"):
            limits.check("max_array_bytes", math.prod(page.chunks) * size)
            break  # the pages of a series are alike
