"""What the student sees of a picture: small crops, or the picture with patches hidden.

Every choice is a hash of the sample and the step: the same on any number of ranks, in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from multimodal.core.hashing import stable_hash
from multimodal.core.tensor_hashing import pair_hash, uniform

ASPECT = 4 / 3  # the widest and, inverted, the narrowest crop


@dataclass(frozen=True)
class LocalCrops:
    """Small crops, of which the student tells what the teacher sees in the whole (DINO, SILC).

    They are cut from the view that the pairs are trained on, and resized bilinearly.

    Args:
        count: crops of each picture, at least 1.
        scale: their least and largest area, shares of the view in (0, 1].
        size: side of a crop in pixels, or ``[height, width]``; null: the view's. Smaller ones cost
            less, and need an encoder that takes them, as a ViT of ours, which resizes its
            positions.
        weight: of this loss beside the pairs.

    Raises:
        ValueError: if a value is out of its range.
    """

    count: int = 4
    scale: Sequence[float] = (0.05, 0.4)
    size: int | Sequence[int] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count}: expected at least one crop")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"scale={list(self.scale)}: expected two shares in (0, 1], the smaller first"
            )
        if self.size is not None and (len(self.sides) != 2 or min(self.sides) < 1):
            raise ValueError(f"size={self.size}: expected one positive number or two, or null")
        _refuse_weight(self.weight)

    @property
    def sides(self) -> tuple[int, ...]:
        """Height and width of a crop in pixels; only where ``size`` is given."""
        assert self.size is not None
        return (self.size,) * 2 if isinstance(self.size, int) else tuple(self.size)

    def cut(self, pictures: Tensor, ids: Tensor, key: int) -> Tensor:
        """Crops ``[B, count, C, h, w]`` of pictures ``[B, C, H, W]``.

        Args:
            pictures: float.
            ids: ``[B]`` int64, of the samples.
            key: signed 64-bit integer, another one in each step.
        """
        places = torch.arange(4 * self.count, device=ids.device)
        draws = uniform(ids, places, stable_hash(key, "crops")).view(-1, self.count, 4)
        least, largest = self.scale
        area = least + (largest - least) * draws[..., 0]
        aspect = torch.exp((2 * draws[..., 1] - 1) * math.log(ASPECT))
        height, width = pictures.shape[-2:]
        aspect = aspect * height / width  # of shares of the sides, not of pixels
        # a whole side, and then less than the area that was drawn, where the picture is narrow
        wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        right, down = (1 - wide) * (2 * draws[..., 2] - 1), (1 - high) * (2 * draws[..., 3] - 1)
        zero = torch.zeros_like(wide)
        theta = torch.stack([wide, zero, right, zero, high, down], dim=-1).view(-1, 2, 3)
        sides = (height, width) if self.size is None else self.sides
        shape = [len(theta), pictures.shape[1], *sides]
        if not len(theta):  # torch refuses a grid of nothing
            return pictures.new_zeros(0, self.count, *shape[1:])
        dtype = torch.promote_types(pictures.dtype, torch.float32)
        with torch.autocast(pictures.device.type, enabled=False):
            grid = F.affine_grid(theta.to(dtype), shape, align_corners=False)
            repeated = pictures.to(dtype).repeat_interleave(self.count, dim=0)
            crops = F.grid_sample(repeated, grid, padding_mode="border", align_corners=False)
        return crops.to(pictures.dtype).view(-1, self.count, *crops.shape[1:])


@dataclass(frozen=True)
class HiddenPatches:
    """Patches hidden from the student, which predicts what the teacher makes of them (iBOT, TIPS).

    Args:
        share: of a picture's patches that are hidden, in (0, 1).
        visible: whether the student also predicts the patches that it sees (iBOT++ of TIPSv2,
            arXiv:2604.12012).
        weight: of this loss beside the pairs.

    Raises:
        ValueError: if a value is out of its range.
    """

    share: float = 0.5
    visible: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share}: expected a share in (0, 1)")
        _refuse_weight(self.weight)

    def hidden(self, ids: Tensor, patches: int, key: int) -> Tensor:
        """Places ``[B, M]`` int64, ascending, of the hidden ones among ``patches`` of each sample.

        Args:
            ids: ``[B]`` int64, of the samples.
            patches: of a picture; M is the share of them, at least 1.
            key: signed 64-bit integer, another one in each step.
        """
        places = torch.arange(patches, device=ids.device)
        chances = pair_hash(ids, places, stable_hash(key, "hidden"))
        count = max(1, round(self.share * patches))
        return chances.topk(count, dim=1).indices.sort(dim=1).values


def _refuse_weight(weight: float) -> None:
    if not weight > 0:
        raise ValueError(f"weight={weight}: expected a number above 0; leave the part out by null")
