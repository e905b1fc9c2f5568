"""Numeric arrays."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from multimodal.data.decoding.values import Request
from multimodal.data.errors import DecodeError


def decode_array(data: bytes, request: Request) -> NDArray[Any]:
    """The array of a ``.npy``, read-only, of bool, integer or floating type.

    Raises:
        DecodeError: if it is too large, cut, or holds anything but numbers.
        ValueError: if its header is broken.
    """
    stream = io.BytesIO(data)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(stream)
    if version not in readers:
        raise DecodeError("unsupported", f".npy version {version}")
    shape, fortran_order, dtype = readers[version](stream)
    if dtype.kind not in "biuf":  # objects would need pickle
        raise DecodeError("unsupported", f"an array of {dtype}: only numbers are read")
    size = math.prod(shape) * dtype.itemsize
    request.limits.check("max_array_bytes", size)
    start = stream.tell()
    if len(data) - start != size:
        raise DecodeError("corrupt", f"{len(data) - start} bytes for {shape} of {dtype}")
    flat = np.frombuffer(data, dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran_order else "C")
