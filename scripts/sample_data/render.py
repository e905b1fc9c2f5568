"""Read Wavefront OBJ models and draw their depth with a z-buffer in numpy."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .triangulate import triangulate

FACE_REST = re.compile(rb"/[^\s]*")  # "12/7/3" -> "12": only positions are drawn
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
    """The mesh of an OBJ file; polygons are cut into triangles, materials are ignored."""
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
        if count >= 3:
            triangles.append(triangulate(vertices[:, :3], polygons))
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
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    corners = np.where(area[:, None, None] < 0, corners[:, [0, 2, 1]], corners)  # one orientation
    low = np.floor(corners[:, :, :2].min(1))
    extent = np.ceil(corners[:, :, :2].max(1)) - low
    # Triangles of similar width and height are drawn together: tiles of 2, 4, 8, ... pixels.
    tiles = 2 ** np.ceil(np.log2(np.maximum(extent, 2))).astype(np.int64)
    drawn = (np.abs(area) > 1e-12) & (low < size).all(1) & (low + extent > 0).all(1)
    buffer = np.full(size * size, np.inf)
    for width, height in np.unique(tiles[drawn], axis=0):
        chosen = np.flatnonzero(drawn & (tiles == (width, height)).all(1))
        step = max(1, int(PIXELS_AT_ONCE // (width * height)))
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            _draw(buffer, corners[part], low[part], int(width), int(height), size)
    return buffer.reshape(size, size)


def _draw(
    buffer: np.ndarray, corners: np.ndarray, low: np.ndarray, width: int, height: int, size: int
) -> None:
    """Draw triangles that fit into tiles of width x height pixels at ``low`` into the buffer."""
    x = low[:, 0, None] + np.arange(width)  # [T, width]
    y = low[:, 1, None] + np.arange(height)
    weights = []  # of the corners, times twice the area: [T, height, width]
    for start, end in ((1, 2), (2, 0), (0, 1)):
        p, q = corners[:, start, :, None], corners[:, end, :, None]
        down = (q[:, 0] - p[:, 0]) * (y + 0.5 - p[:, 1])
        across = (q[:, 1] - p[:, 1]) * (x + 0.5 - p[:, 0])
        weights.append(down[:, :, None] - across[:, None, :])
    inside = (weights[0] >= 0) & (weights[1] >= 0) & (weights[2] >= 0)
    inside &= ((y >= 0) & (y < size))[:, :, None] & ((x >= 0) & (x < size))[:, None, :]
    triangle, row, column = np.nonzero(inside)
    shares = np.stack([weight[inside] for weight in weights], 1)
    depth = (shares * corners[triangle, :, 2]).sum(1) / shares.sum(1)
    pixels = y[triangle, row] * size + x[triangle, column]
    np.minimum.at(buffer, pixels.astype(np.int64), depth)
