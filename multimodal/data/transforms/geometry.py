"""Crops and flips that all aligned modalities of a sample share, and the resize behind them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multimodal.data.sample_rng import SampleRNG

_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a picture in pixels, and whether to mirror it."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


@dataclass(frozen=True)
class Geometry:
    """Random resized crop (Szegedy et al. 2015, section 6) and horizontal flip.

    The choice is made from the sample's ``SampleRNG.geometry`` and in fractions of height and
    width: pictures of one sample that show the same view get the same crop, at any resolution.

    Args:
        scale: range of the crop's share of the picture's area; [1, 1] for the central square. A
            share above 1, at most 16, shows the whole picture smaller, on an empty border (the
            expansion of Liu et al. 2016, SSD).
        ratio: range of its width / height, drawn uniformly on a logarithmic scale.
        flip: probability of mirroring left and right.

    Raises:
        ValueError: if a range or the probability is none.
    """

    scale: Sequence[float] = (1.0, 1.0)
    ratio: Sequence[float] = (0.75, 1.3333)
    flip: float = 0.0

    def __post_init__(self) -> None:
        scale, ratio, flip = self.scale, self.ratio, self.flip
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 16:
            raise ValueError(f"scale must be two rising numbers in (0, 16], got {list(scale)}")
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must be two rising numbers above 0, got {list(ratio)}")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be a probability, got {flip}")
        object.__setattr__(self, "scale", (float(scale[0]), float(scale[1])))
        object.__setattr__(self, "ratio", (float(ratio[0]), float(ratio[1])))
        object.__setattr__(self, "flip", float(flip))

    def __repr__(self) -> str:
        return f"scale={list(self.scale)} ratio={list(self.ratio)} flip={self.flip}"

    @property
    def is_random(self) -> bool:
        """Whether draws change it."""
        return self.scale != (1.0, 1.0) or self.flip > 0

    def box(self, rng: SampleRNG | None, height: int, width: int) -> Box:
        """What to keep of a ``height`` x ``width`` picture; its central square without a draw."""
        if rng is None:
            return _centre(height, width)
        random = rng.geometry()
        flip = next(random) < self.flip
        log_ratio = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(_ATTEMPTS if self.scale != (1.0, 1.0) else 0):
            u_area, u_ratio, u_top, u_left = itertools.islice(random, 4)
            area = self.scale[0] + u_area * (self.scale[1] - self.scale[0])
            ratio = math.exp(log_ratio[0] + u_ratio * (log_ratio[1] - log_ratio[0]))
            part_height = math.sqrt(area / ratio * width / height)
            part_width = math.sqrt(area * ratio * height / width)
            if area > 1 or max(part_height, part_width) <= 1 + 1e-9:
                top, rows = _span(u_top, part_height, height)
                left, columns = _span(u_left, part_width, width)
                return Box(top, left, rows, columns, flip)
        box = _centre(height, width)
        return Box(box.top, box.left, box.height, box.width, flip)


def squares(height: int, width: int, count: int) -> list[Box]:
    """``count`` squares as large as fit, evenly spread along the longer side; one: the middle."""
    side = min(height, width)
    places = [number / (count - 1) for number in range(count)] if count > 1 else [0.5]
    return [
        Box(int((height - side) * place), int((width - side) * place), side, side)
        for place in places
    ]


def _centre(height: int, width: int) -> Box:
    return squares(height, width, 1)[0]


def _span(place: float, part: float, size: int) -> tuple[int, int]:
    """Start and length in pixels of a ``part`` that leaves ``place`` of the rest before it.

    A part longer than ``size`` starts before it: the rest is then the border around.
    """
    length = max(1, round(part * size))
    rest = size - length
    return min(max(round(place * (1 - part) * size), min(rest, 0)), max(rest, 0)), length


def crop_and_resize(
    pictures: Tensor, box: Box, size: int, mode: str, border: float = 0.0
) -> Tensor:
    """The box of each picture, antialiased, as a square, mirrored if the box says so.

    Args:
        pictures: ``[C, H, W]``, uint8 or floating.
        box: what to keep.
        size: side of the result.
        mode: ``bicubic`` or ``bilinear``.
        border: value of what the box has beyond the picture.

    Returns:
        ``[C, size, size]`` of the same type.
    """
    height, width = pictures.shape[1:]
    bottom, right = box.top + box.height, box.left + box.width
    part = _cut(pictures, slice(max(box.top, 0), bottom), slice(max(box.left, 0), right))
    beyond = (max(-box.left, 0), max(right - width, 0), max(-box.top, 0), max(bottom - height, 0))
    if any(beyond):
        part = F.pad(part, beyond, value=border)
    if (box.height, box.width) != (size, size):
        part = F.interpolate(_as_batch(part), (size, size), mode=mode, antialias=True)[0]
    return part.flip(-1) if box.flip else part


def _cut(pictures: Tensor, rows: slice, columns: slice) -> Tensor:
    """A part of ``[C, H, W]``; in channels-last memory, copied so that its rows are contiguous.

    The resize needs that layout, and numpy's copy takes a third of the time of torch's.
    """
    part = pictures[:, rows, columns]
    if pictures.stride(0) != 1 or part.shape[2] == pictures.shape[2]:
        return part
    return torch.from_numpy(np.ascontiguousarray(part.permute(1, 2, 0).numpy())).permute(2, 0, 1)


def _as_batch(picture: Tensor) -> Tensor:
    """``[1, C, H, W]``; in channels-last memory, with strides from which torch recognises it.

    With the strides that ``[None]`` gives to ``[C, H, W]`` it does not, and copies the result.
    """
    return picture.permute(1, 2, 0)[None].permute(0, 3, 1, 2)


def erase(picture: Tensor, probability: float, random: np.random.Generator) -> None:
    """Random erasing (Zhong et al. 2020): sets a rectangle of ``[C, H, W]`` to 0, in place.

    The rectangle has 2 to 33 % of the area and a side ratio of 0.3 to 3.3, as in the paper.
    """
    if random.random() >= probability:
        return
    height, width = picture.shape[-2:]
    area = random.uniform(0.02, 0.33) * height * width
    ratio = math.exp(random.uniform(math.log(0.3), math.log(3.3)))
    rows = min(height, max(1, round(math.sqrt(area * ratio))))
    columns = min(width, max(1, round(math.sqrt(area / ratio))))
    top, left = random.integers(height - rows + 1), random.integers(width - columns + 1)
    picture[:, top : top + rows, left : left + columns] = 0
