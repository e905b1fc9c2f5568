"""RandAugment (Cubuk et al. 2020): a few changes of equal strength, drawn from a list."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

_GREATEST = 10  # magnitude, as in the paper
_COLOUR = (
    "identity",
    "auto_contrast",
    "equalize",
    "solarize",
    "posterize",
    "colour",
    "contrast",
    "brightness",
    "sharpness",
)
_SPATIAL = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def rand_augment(
    pixels: NDArray[np.uint8],
    operations: int,
    magnitude: float,
    spatial: bool,
    random: np.random.Generator,
) -> NDArray[np.uint8]:
    """``operations`` changes one after the other.

    Args:
        pixels: uint8 ``[H, W, 3]``.
        operations: their number (N in the paper).
        magnitude: 0 to 10 (M in the paper): 30 degrees, shears of 0.3, shifts of 0.45 of the side,
            colour factors of 1 +- 0.9 at 10.
        spatial: whether turns, shears and shifts are among them; no depth map would follow these.
        random: draws them and their signs.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    image = Image.fromarray(pixels)
    names = _COLOUR + _SPATIAL if spatial else _COLOUR
    for _ in range(operations):
        name = names[int(random.integers(len(names)))]
        sign = 1.0 if random.random() < 0.5 else -1.0
        image = _apply(image, name, sign * magnitude / _GREATEST)
    return np.asarray(image)


def _apply(image: Image.Image, name: str, strength: float) -> Image.Image:
    """One change; ``strength`` in [-1, 1]."""
    if name == "auto_contrast":
        return ImageOps.autocontrast(image)
    if name == "equalize":
        return ImageOps.equalize(image)
    if name == "solarize":
        return ImageOps.solarize(image, round(256 * (1 - abs(strength))))
    if name == "posterize":
        return ImageOps.posterize(image, 8 - round(4 * abs(strength)))
    enhancers = {
        "colour": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhancers:
        return enhancers[name](image).enhance(1 + 0.9 * strength)
    width, height = image.size
    if name == "rotate":
        return image.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))
    moves = {
        "shear_x": (1, 0.3 * strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * strength, 1, 0),
        "translate_x": (1, 0, 0.45 * strength * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.45 * strength * height),
    }
    if name not in moves:  # identity
        return image
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        moves[name],
        Image.Resampling.BILINEAR,
        fillcolor=(128, 128, 128),
    )
