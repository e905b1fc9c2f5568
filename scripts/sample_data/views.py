"""The depth of a furniture model in the view of its icon: find the pose, then draw it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .images import SIZE
from .render import Mesh, view_rotation, z_buffer

VIEW = (-30.0, 20.0)  # yaw and pitch in degrees: how most icons are drawn
DISTANCE = 3.0  # from the camera to the model's centre, in radii of the box around the model
SEARCH_YAW = (-60.0, -30.0, 0.0, 30.0, 60.0)
SEARCH_PITCH = (0.0, 20.0, 40.0, 60.0, 85.0)
GRID = 48  # pixels a side at which outlines are compared
SURFACE_POINTS = 30_000
STEPS = ((15.0, 10.0), (7.0, 5.0))  # refinements of the best pose
GOOD_OVERLAP = 0.9  # the usual view is kept without a search
GAIN = 0.03  # another view has to overlap better by this much
OVERSAMPLING = 4
COVERAGE = 0.25  # the part of a pixel that a surface has to cover


@dataclass(frozen=True)
class View:
    """A pose and how well the model's outline then fits the icon's (intersection over union)."""

    yaw: float
    pitch: float
    overlap: float


def scale_model(mesh: Mesh, rotation: np.ndarray, size_mm: np.ndarray) -> Mesh:
    """The model upright, centred, in millimetres: its box has ``size_mm`` (x, y, z)."""
    vertices = mesh.vertices @ rotation.T
    used = vertices[np.unique(mesh.triangles)]
    low, high = used.min(0), used.max(0)
    vertices = (vertices - (low + high) / 2) / np.maximum(high - low, 1e-9) * size_mm
    return Mesh(vertices, mesh.triangles)


def _project(points: np.ndarray, radius: float, yaw: float, pitch: float) -> np.ndarray:
    """Perspective picture coordinates (x, y down) and distances in mm, ``[N, 3]``."""
    seen = points @ view_rotation(yaw, pitch).T
    distance = DISTANCE * radius - seen[:, 2]
    return np.column_stack([seen[:, :2] * [1.0, -1.0] / distance[:, None], distance])


def _radius(model: Mesh) -> float:
    used = model.vertices[np.unique(model.triangles)]
    return float(np.linalg.norm(used.max(0) - used.min(0))) / 2


def _fit(flat: np.ndarray, drawn: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
    """Scale and move ``flat`` so that the points ``drawn`` fill ``box`` (l, t, r, b) centrally."""
    rows = np.ascontiguousarray(drawn.T)  # a minimum along rows is many times faster
    low, high = rows.min(1), rows.max(1)
    left, top, right, bottom = box
    scale = min(np.array([right - left, bottom - top]) / np.maximum(high - low, 1e-9))
    return (flat - (low + high) / 2) * scale + [(left + right) / 2, (top + bottom) / 2]


def outline_box(alpha: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the opaque part of ``alpha`` ``[H, W]`` (0 to 255)."""
    rows, columns = np.flatnonzero((alpha > 127).any(1)), np.flatnonzero((alpha > 127).any(0))
    return columns[0], rows[0], columns[-1] + 1.0, rows[-1] + 1.0


def surface_points(model: Mesh) -> np.ndarray:
    """Points spread evenly at random over the surface ``[SURFACE_POINTS, 3]``."""
    corners = model.vertices[model.triangles]
    sides = corners[:, 1:] - corners[:, :1]
    areas = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1).cumsum()
    rng = np.random.Generator(np.random.Philox(key=0))
    chosen = np.searchsorted(areas, rng.random(SURFACE_POINTS) * areas[-1])
    u, v = rng.random((2, SURFACE_POINTS, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    chosen = np.minimum(chosen, len(corners) - 1)
    return corners[chosen, 0] + u * sides[chosen, 0] + v * sides[chosen, 1]


def find_view(model: Mesh, alpha: np.ndarray) -> View:
    """The pose whose outline fits the icon's best; the usual one where it is about as good.

    Args:
        model: in millimetres, as ``scale_model`` gives it.
        alpha: ``[H, H]`` uint8, the icon's opacity.
    """
    small = np.asarray(Image.fromarray(alpha).resize((GRID, GRID), Image.Resampling.BOX))
    mask = small > 255 * COVERAGE
    box = outline_box(np.where(mask, 255, 0))
    points, radius = surface_points(model), _radius(model)

    def view(yaw: float, pitch: float) -> View:
        flat = _project(points, radius, yaw, pitch)[:, :2]
        columns, rows = np.floor(_fit(flat, flat, box)).astype(np.int64).clip(0, GRID - 1).T
        drawn = np.zeros_like(mask)
        drawn[rows, columns] = True
        return View(yaw, pitch, float((drawn & mask).sum() / (drawn | mask).sum()))

    usual = view(*VIEW)
    if usual.overlap >= GOOD_OVERLAP:
        return usual
    searched = [view(yaw, pitch) for yaw in SEARCH_YAW for pitch in SEARCH_PITCH]
    best = max(searched, key=lambda v: v.overlap)
    for yaw_step, pitch_step in STEPS:
        around = [
            view(best.yaw + i * yaw_step, min(90.0, max(0.0, best.pitch + j * pitch_step)))
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ]
        best = max([best, *around], key=lambda v: v.overlap)
    return best if best.overlap > usual.overlap + GAIN else usual


def draw_depth(model: Mesh, view: View, box: tuple[float, ...]) -> np.ndarray:
    """Depth along the optical axis, with the model filling ``box`` of the picture.

    Args:
        model: in millimetres.
        view: the pose.
        box: left, top, right, bottom in a picture of ``SIZE`` pixels.

    Returns:
        ``[SIZE, SIZE]`` uint16, millimetres, 0 where there is no surface.
    """
    seen = _project(model.vertices, _radius(model), view.yaw, view.pitch)
    fine = SIZE * OVERSAMPLING
    placed = _fit(seen[:, :2], seen[np.unique(model.triangles), :2], box) * OVERSAMPLING
    points = np.column_stack([placed, -1.0 / seen[:, 2]])
    depth = -1.0 / z_buffer(points, model.triangles, fine)  # -1 / inf = -0: no surface
    cells = depth.reshape(SIZE, OVERSAMPLING, SIZE, OVERSAMPLING).swapaxes(1, 2)
    cells = cells.reshape(SIZE, SIZE, OVERSAMPLING**2)
    surface = cells > 0
    nearest = np.where(surface, cells, np.inf).min(2)
    covered = surface.mean(2) >= COVERAGE
    return np.where(covered, np.clip(np.round(nearest), 1, 65535), 0).astype(np.uint16)


def depth_png(depth: np.ndarray) -> bytes:
    """A 16-bit grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(depth).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
