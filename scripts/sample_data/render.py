"""Read Wavefront OBJ models and draw their depth with a z-buffer in numpy."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

FACE_REST = re.compile(rb"/[^\s]*")  # "12/7/3" -> "12": only positions are drawn
TILES = (2, 4, 8, 16, 32, 64, 128, 256)  # triangles are drawn in groups of similar extent
PIXELS_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Mesh:
    """Triangles in space.

    Attributes:
        vertices: ``[V, 3]`` float64.
        triangles: ``[T, 3]`` int64, indices of vertices.
    """

    vertices: np.ndarray
    triangles: np.ndarray


def read_obj(data: bytes) -> Mesh:
    """The mesh of an OBJ file; polygons become fans of triangles, materials are ignored."""
    data = data.replace(b"\\\r\n", b" ").replace(b"\\\n", b" ")
    positions, faces = [], []
    for line in data.splitlines():
        if line.startswith(b"v "):
            positions.append(line[2:])
        elif line.startswith(b"f "):
            faces.append(line[2:])
    vertices = np.array(b" ".join(positions).split(), np.float64).reshape(len(positions), -1)
    corners = [row.split() for row in FACE_REST.sub(b"", b"\n".join(faces)).split(b"\n")]
    triangles = []
    for count in sorted({len(row) for row in corners}):
        polygons = np.array([row for row in corners if len(row) == count], np.int64)
        polygons = np.where(polygons > 0, polygons - 1, polygons + len(vertices))
        triangles += [polygons[:, [0, i, i + 1]] for i in range(1, count - 1)]
    return Mesh(vertices[:, :3], np.concatenate(triangles))


def view_rotation(yaw: float, pitch: float) -> np.ndarray:
    """Rotation ``[3, 3]`` of the model, in degrees: about the vertical y, then about x."""
    yaw, pitch = np.deg2rad(yaw), np.deg2rad(pitch)
    about_y = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    about_x = [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
    return np.array(about_x) @ np.array(about_y)


def z_buffer(points: np.ndarray, triangles: np.ndarray, size: int) -> np.ndarray:
    """The nearest depth at every pixel's centre.

    Args:
        points: ``[V, 3]``, x to the right and y down in pixels, and the depth. Depth is
            interpolated linearly over the picture, so for a perspective view it has to be the
            inverse distance, negated (which orders surfaces as the distance does).
        triangles: ``[T, 3]`` indices of points.
        size: of the square picture, in pixels.

    Returns:
        ``[size, size]`` float64, +inf where there is no surface.
    """
    corners = points[triangles]  # [T, 3 corners, 3]
    low = np.floor(corners[:, :, :2].min(1)).astype(np.int64)
    extent = (np.ceil(corners[:, :, :2].max(1)) - low).max(1).astype(np.int64)
    buffer = np.full(size * size, np.inf)
    done = 0
    for tile in TILES:
        chosen = np.flatnonzero((extent > done) & (extent <= tile))
        done = tile
        step = max(1, PIXELS_AT_ONCE // tile**2)
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            _draw(buffer, corners[part], low[part], tile, size)
    return buffer.reshape(size, size)


def _draw(buffer: np.ndarray, corners: np.ndarray, low: np.ndarray, tile: int, size: int) -> None:
    """Draw triangles that fit into ``tile`` pixels from their ``low`` corner into the buffer."""
    a, b, c = corners[:, None, 0], corners[:, None, 1], corners[:, None, 2]
    rows, columns = np.divmod(np.arange(tile * tile), tile)
    x = low[:, :1] + columns  # [T, tile * tile]
    y = low[:, 1:] + rows
    px, py = x + 0.5, y + 0.5

    def edge(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return (q[..., 0] - p[..., 0]) * (py - p[..., 1]) - (q[..., 1] - p[..., 1]) * (
            px - p[..., 0]
        )

    weights = np.stack([edge(b, c), edge(c, a), edge(a, b)])  # twice the areas, signed
    area = weights.sum(0)
    inside = ((weights >= 0).all(0) | (weights <= 0).all(0)) & (np.abs(area) > 1e-12)
    inside &= (x >= 0) & (x < size) & (y >= 0) & (y < size)
    depth = sum(w * p[..., 2] for w, p in zip(weights, (a, b, c), strict=True))
    depth = depth[inside] / area[inside]
    np.minimum.at(buffer, (y * size + x)[inside], depth)
