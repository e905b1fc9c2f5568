"""Draw SVG icons at 64 pixels and store them in few bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .shards import BLOCK

SIZE = 64
# Fewest colours last; an image keeps as many as fit into its blocks.
PALETTES = (96, 64, 48, 40, 32, 24, 20, 16)
ONE_BLOCK_PALETTES = (24, 16, 12, 8)
FINE_PSNR = 37.0  # dB; above it a difference at 64 pixels is hardly seen


def draw_icon(icons: Mapping[str, Any], name: str) -> Image.Image:
    """Draw one icon of an Iconify set on white.

    Args:
        icons: the parsed ``icons.json`` of the set.
        name: an icon's name or alias in it.

    Returns:
        RGB, 64x64.
    """
    import resvg_py  # here, so that all but the drawing works without the extra ``samples``

    alias = icons.get("aliases", {}).get(name, {})
    icon = icons["icons"][alias.get("parent", name)]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    left, top = icon.get("left", 0), icon.get("top", 0)
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{left} {top} {width} {height}">'
        f"{icon['body']}</svg>"
    )
    data = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, background="#ffffff")
    image = Image.open(io.BytesIO(bytes(data))).convert("RGB")
    if image.size != (SIZE, SIZE):  # an icon that is not square: centre it
        image = ImageOps.pad(image, (SIZE, SIZE), color="#ffffff")
    return ImageOps.mirror(image) if alias.get("hFlip") else image


def webp(image: Image.Image) -> bytes:
    """Lossless WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=100, method=5, exact=True)
    return buffer.getvalue()


def psnr(image: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB images of one size, in dB."""
    difference = np.asarray(image, np.float64) - np.asarray(other, np.float64)
    error = float(np.mean(difference**2))
    return float("inf") if error == 0.0 else 10.0 * float(np.log10(255.0**2 / error))


def reduce_colors(image: Image.Image, colors: int) -> Image.Image:
    """The image in at most ``colors`` colours (median cut, then k-means), without dithering."""
    palette = image.quantize(
        colors, method=Image.Quantize.MEDIANCUT, kmeans=4, dither=Image.Dither.NONE
    )
    return palette.convert("RGB")


def compact_webp(image: Image.Image, blocks: int = 2) -> bytes:
    """Lossless WebP of the image, its colours reduced until it fits into tar blocks.

    One block is taken where the picture is exact or as good as exact (``FINE_PSNR``); otherwise
    the most colours are kept that fit into ``blocks``, and at least 16.
    """
    exact = webp(image)
    if len(exact) <= BLOCK:
        return exact
    for colors in ONE_BLOCK_PALETTES:
        reduced = reduce_colors(image, colors)
        if psnr(image, reduced) < FINE_PSNR:
            break
        if len(small := webp(reduced)) <= BLOCK:
            return small
    if len(exact) <= blocks * BLOCK:
        return exact
    for colors in PALETTES:
        data = webp(reduce_colors(image, colors))
        if len(data) <= blocks * BLOCK:
            break
    return data
