"""The report's figures: curves and the diagram of pairs as SVG, matrices as pictures.

The SVG takes its colours from the page's style sheet, so it follows the light or dark theme.
Figures are read without colour too: series differ in dashes, trained and emergent in stroke.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from multimodal.data.preview import colour_mapped, image_uri

MAX_POINTS = 240
COLOURS = 8  # classes s0 to s7 of the style sheet

_WIDTH, _HEIGHT = 380, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 24


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart of the curves section: a title, its drawing, its series' names in order."""

    title: str
    drawing: Markup
    legend: list[str]


def curves(rows: Sequence[Mapping[str, str]]) -> list[Chart]:
    """The charts of a ``metrics.csv``, given as its rows.

    Columns share a chart when they share the word after ``train/`` (``train/loss`` and
    ``train/loss/image_text``), or are of ``val/``.
    """
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    names = dict.fromkeys(name for row in rows for name in row if name not in ("step", "epoch"))
    for name in names:
        points = [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
        points = [(step, value) for step, value in points if math.isfinite(value)]
        if points:
            title, series = _place(name)
            groups.setdefault(title, {})[series] = points
    first = ("training loss", "validation")
    titles = sorted(groups, key=lambda title: first.index(title) if title in first else len(first))
    return [Chart(title, line_chart(title, groups[title]), list(groups[title])) for title in titles]


def _place(name: str) -> tuple[str, str]:
    phase, _, rest = name.partition("/")
    if phase == "val":
        *where, metric = rest.split("/")
        return "validation", " ".join([*where, metric.replace("_", " ")])
    first, _, series = rest.partition("/")
    if first.startswith("loss"):
        return "training loss", " ".join(filter(None, [first[5:], series])) or "all pairs"
    title = {"lr": "learning rate"}.get(first, first.replace("_", " ")) or phase
    return title, series or title


def line_chart(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    """Lines over training steps, as SVG.

    Args:
        title: read out by screen readers.
        lines: name -> (step, value) points; more than ``MAX_POINTS`` are averaged in bins.
    """
    thinned = [_thin(points) for points in lines.values()]
    xs = [x for points in thinned for x, _ in points]
    ys = [y for points in thinned for _, y in points]
    left = min(0.0, *xs)
    right = max(*xs, left + 1e-9)
    x_ticks, y_ticks = ticks(left, right, 4), ticks(min(ys), max(ys), 4)
    low, high = min(*y_ticks, *ys), max(*y_ticks, *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left)
        up = (y - low) / max(high - low, 1e-12)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    parts.append(str(Markup("<title>{}</title>").format(title)))
    for tick in y_ticks:
        _, y = place(left, tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y + 3.5:.1f}">{number(tick)}</text>')
    for tick in x_ticks:
        x, _ = place(tick, low)
        if x <= _WIDTH - _RIGHT + 1:
            parts.append(
                f'<text class="middle" x="{x:.1f}" y="{_HEIGHT - 7}">{number(tick)}</text>'
            )
    for index, points in enumerate(thinned):
        placed = [place(x, y) for x, y in points]
        style = f"s{index % COLOURS}" + (" dashed" if index >= COLOURS else "")
        if len(placed) == 1:
            x, y = placed[0]
            parts.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        else:
            corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
            parts.append(f'<polyline class="{style}" points="{corners}"/>')
    return Markup("".join(parts) + "</svg>")


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= MAX_POINTS:
        return list(points)
    bins = np.array_split(np.asarray(points), MAX_POINTS)
    return [(float(x), float(y)) for x, y in (part.mean(axis=0) for part in bins)]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers that lie within ``[low, high]`` or just around it."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A short label: 12k, 0.35, 2.5e-4."""
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1000:g}k"
    if size >= 0.01 or size == 0:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def heat_map(matrix: NDArray[np.float64]) -> str:
    """A matrix as a picture, one pixel per cell, dark is low; as a data URI."""
    low, high = float(np.min(matrix)), float(np.max(matrix))
    scaled = (matrix - low) / max(high - low, 1e-12)
    return image_uri(colour_mapped(scaled, "viridis").convert("RGB"), lossless=True)


@dataclass(frozen=True, slots=True)
class Link:
    """An edge of the diagram: two modalities, trained together or not, times above chance.

    ``above`` if that is distinguishable from chance and shortcuts.
    """

    ends: tuple[str, str]
    trained: bool
    lift: float
    above: bool = True


def pair_diagram(links: Sequence[Link]) -> Markup:
    """The modalities around the one that binds most, with a line per evaluated pair.

    Solid lines were trained, dashed ones emerged, grey ones are not distinguishable from chance or
    a shortcut; each carries how many times more often than by chance the right answer comes first.
    """
    trained = [name for link in links if link.trained for name in link.ends]
    names = list(dict.fromkeys(name for link in links for name in link.ends))
    if not names:
        return Markup("")
    centre = max(names, key=lambda name: (trained.count(name), -names.index(name)))
    around = [name for name in names if name != centre]
    positions = {centre: (200.0, 150.0)} if len(around) > 1 else {centre: (90.0, 150.0)}
    for index, name in enumerate(around):
        angle = 2 * math.pi * index / len(around) - math.pi / 2
        spot = (200 + 140 * math.cos(angle), 150 + 112 * math.sin(angle))
        positions[name] = spot if len(around) > 1 else (310.0, 150.0)
    parts = ['<svg class="pairs" viewBox="0 0 400 300" role="img"><title>Pairs</title>']
    labels = []
    for link in links:
        (x1, y1), (x2, y2) = (positions[name] for name in link.ends)
        kind = ("trained" if link.trained else "emergent") + ("" if link.above else " unproven")
        width = 1.5 + min(5.0, 1.5 * math.log10(max(link.lift, 1.0)) * 1.6)
        mx, my = (x1 + x2) / 2, (y1 + y2) / 2
        if centre not in link.ends:  # rim to rim an edge bends around the centre
            if math.hypot(mx - 200, my - 150) > 20:
                mx, my = mx + (mx - 200) * 0.5, my + (my - 150) * 0.5
            else:
                mx, my = mx + (y2 - y1) * 0.6, my + (x1 - x2) * 0.6
        curve = f"M{x1:.0f} {y1:.0f}Q{mx:.0f} {my:.0f} {x2:.0f} {y2:.0f}"
        parts.append(f'<path class="{kind}" stroke-width="{width:.1f}" d="{curve}"/>')
        near, middle, far = (0.25, 0.5, 0.25) if centre in link.ends else (0.5, 0.42, 0.08)
        tx, ty = near * x1 + middle * mx + far * x2, near * y1 + middle * my + far * y2
        label = f"{link.lift:.0f}×" if link.lift >= 9.5 else f"{link.lift:.1f}×"
        half = 4 + 3.6 * len(label)
        labels.append(
            f'<rect class="{kind}" x="{tx - half:.0f}" y="{ty - 10:.0f}" width="{2 * half:.0f}" '
            f'height="20" rx="10"/>'
            f'<text class="{kind}" x="{tx:.0f}" y="{ty + 4:.0f}">{label}</text>'
        )
    parts += labels
    for name, (x, y) in positions.items():
        half = max(26.0, 10 + 4.2 * len(name))
        parts.append(
            f'<rect class="node" x="{x - half:.0f}" y="{y - 16:.0f}" width="{2 * half:.0f}" '
            f'height="32" rx="16"/>'
        )
        label = Markup('<text class="name" x="{}" y="{}">{}</text>')
        parts.append(str(label.format(f"{x:.0f}", f"{y + 4:.0f}", name)))
    return Markup("".join(parts) + "</svg>")
