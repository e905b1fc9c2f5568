"""Point clouds in PLY (Turk 1994): the numbers of each vertex."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multimodal.data.decoding.values import Request
from multimodal.data.errors import DecodeError

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
_LONGEST_HEADER = 1 << 16  # bytes


class _Header(NamedTuple):
    order: str  # of the bytes; empty where the numbers are text
    vertices: int
    fields: list[tuple[str, str]]  # name and type of each number of a vertex
    start: int  # of the first vertex


def decode_points(data: bytes, request: Request) -> NDArray[Any]:
    """The vertices of a PLY, in the order of its header: positions first, mostly.

    Returns:
        ``[points, properties]`` of float32; of float64 where a property is that. Faces are left.

    Raises:
        DecodeError: if it is not a PLY, too large, cut, or has no vertices.
    """
    header = _header(data)
    wide = any(kind == "f8" for _, kind in header.fields)
    count = header.vertices * len(header.fields)
    request.limits.check("max_array_bytes", count * (8 if wide else 4))
    result = np.float64 if wide else np.float32
    if not header.order:
        # A number has a digit and a space at least.
        vertices = np.array(data[header.start :].split(maxsplit=count)[:count], result)
        if vertices.size < count:
            raise DecodeError("corrupt", f"cut: {vertices.size} of {count} numbers are there")
        return vertices.reshape(header.vertices, len(header.fields))
    row = np.dtype([(name, header.order + kind) for name, kind in header.fields])
    missing = header.start + header.vertices * row.itemsize - len(data)
    if missing > 0:
        raise DecodeError("corrupt", f"cut: {missing} bytes are missing")
    rows = np.frombuffer(data, row, header.vertices, header.start)
    return np.stack([rows[name].astype(result) for name, _ in header.fields], axis=1)


def _header(data: bytes) -> _Header:
    text, end, _ = data[:_LONGEST_HEADER].partition(b"end_header")
    lines = text.decode("ascii").splitlines()
    if not end or not lines or lines[0].strip() != "ply":
        raise DecodeError("corrupt", "no PLY: it begins with 'ply' and a header")
    order, element, vertices = None, "", -1
    fields: list[tuple[str, str]] = []
    for line in lines[1:]:
        words = line.split()
        if words[:1] == ["format"]:
            order = _ORDERS.get(words[1])
        elif words[:1] == ["element"]:
            element = words[1]
            if vertices < 0 and element != "vertex":
                raise DecodeError("unsupported", f"a PLY that begins with {element!r}")
            vertices = int(words[2]) if element == "vertex" else vertices
        elif words[:1] == ["property"] and element == "vertex":
            if words[1] not in _TYPES:
                raise DecodeError("unsupported", f"a vertex with the property {line.strip()!r}")
            fields.append((words[2], _TYPES[words[1]]))
    if order is None:
        raise DecodeError("unsupported", f"a PLY of a format that is none of {', '.join(_ORDERS)}")
    if vertices < 1 or not fields:
        raise DecodeError("empty", "the PLY has no vertices")
    line_end = data.index(b"\n", len(text))
    return _Header(order, vertices, fields, line_end + 1)
