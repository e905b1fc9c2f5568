"""Cut polygons into triangles, also those that are not convex."""

from __future__ import annotations

import numpy as np


def _turns(flat: np.ndarray) -> np.ndarray:
    """At every corner of ``flat`` ``[..., N, 2]``: twice the area of it and its neighbours."""
    before, after = flat - np.roll(flat, 1, -2), np.roll(flat, -1, -2) - flat
    return before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]


def _flatten(corners: np.ndarray) -> np.ndarray:
    """Polygons ``[P, N, 3]`` seen along their normals (Newell's), counter-clockwise: [P, N, 2]."""
    following = np.roll(corners, -1, 1)
    normal = np.cross(corners, following).sum(1)
    axis = np.abs(normal).argmax(1)
    kept = np.array([[1, 2], [2, 0], [0, 1]])[axis]  # the two axes that the normal is not along
    flat = np.take_along_axis(corners, kept[:, None, :], 2)
    flipped = np.take_along_axis(normal, axis[:, None], 1)[:, 0] < 0
    flat[flipped] = flat[flipped][:, :, ::-1]  # swapped axes turn the other way round
    return flat


def _clip_ears(flat: np.ndarray) -> list[tuple[int, int, int]]:
    """Triangles of one simple polygon ``[N, 2]``, counter-clockwise, as indices of its corners."""
    left = list(range(len(flat)))
    triangles = []
    while len(left) > 3:
        points = flat[left]
        turns = _turns(points)
        reflex = points[turns <= 0]
        for i in np.argsort(-turns, kind="stable"):  # the widest corner first
            ear = points[[i - 1, i, (i + 1) % len(left)]]
            sides = np.roll(ear, -1, 0) - ear
            offsets = reflex[:, None] - ear  # [R, 3, 2]
            inside = (sides[:, 0] * offsets[..., 1] - sides[:, 1] * offsets[..., 0] > 0).all(1)
            if not inside.any():
                break
        else:
            i = int(turns.argmax())  # it crosses itself: there is no right answer
        triangles.append((left[i - 1], left[i], left[(i + 1) % len(left)]))
        del left[i]
    return [*triangles, (left[0], left[1], left[2])]


def triangulate(vertices: np.ndarray, polygons: np.ndarray) -> np.ndarray:
    """Triangles of polygons that all have N corners.

    Args:
        vertices: ``[V, 3]``.
        polygons: ``[P, N]`` indices of vertices.

    Returns:
        ``[P * (N - 2), 3]`` indices of vertices: convex polygons as fans, the others by cutting
        off their ears (Meisters 1975).
    """
    count = polygons.shape[1]
    fan = np.stack([polygons[:, [0, i, i + 1]] for i in range(1, count - 1)], 1)  # [P, N-2, 3]
    if count > 3:
        flat = _flatten(vertices[polygons])
        turns = _turns(flat)
        size = np.abs(turns).max(1, keepdims=True)
        for concave in np.flatnonzero((turns < -1e-6 * size).any(1)):
            fan[concave] = polygons[concave][np.array(_clip_ears(flat[concave]))]
    return fan.reshape(-1, 3)
