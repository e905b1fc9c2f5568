"""Depth maps for a vision encoder of one channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multimodal.core.settings import flattened
from multimodal.data.decoding.values import DepthMap, depth_values, require_finite
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.base import Stacked, require_shares, standardisation
from multimodal.data.transforms.geometry import Geometry, crop_and_resize, erase

_OUTPUTS = ("disparity", "depth", "log_depth", "relative", "stereo")


@dataclass(frozen=True)
class DepthRange:
    """Unit and limits of raw depth maps.

    Args:
        unit_m: metres per raw value; None: 0.001 (maps in millimetres), and of maps of 8 bits none:
            they are relative. A source's own ``unit_m`` comes before it.
        min_depth_m: anything nearer counts as being there.
        max_depth_m: anything farther counts as being there.

    Raises:
        ValueError: if they do not rise from above 0.
    """

    unit_m: float | None = None
    min_depth_m: float = 0.1
    max_depth_m: float = 10.0

    def __post_init__(self) -> None:
        unit = 1.0 if self.unit_m is None else self.unit_m
        if not (0 < self.min_depth_m < self.max_depth_m < math.inf and unit > 0):
            raise ValueError(
                "0 < min_depth_m < max_depth_m and unit_m > 0 are needed, got "
                f"{self.min_depth_m}, {self.max_depth_m} and {self.unit_m}"
            )


class DepthTransform(Stacked):
    """Raw depth to one of five representations, with the geometry of the picture beside it.

    Depth z in metres is limited to [min_depth_m, max_depth_m]. The first four are in [0, 1]. All
    are then standardised:

    * ``disparity``: min_depth_m / z;
    * ``depth``: z / max_depth_m;
    * ``log_depth``: log(z / min_depth_m) over its maximum, where a thing twice as large and twice
      as far differs by a constant;
    * ``relative``: from 1 at the map's nearest point evenly to 0.2 at its farthest, which shows the
      shape of a thing at any distance, and not its size;
    * ``stereo``: what a stereo camera would measure, baseline_m x focal / z, in the unit of the
      focal length (Girdhar et al. 2023, ImageBind, appendix; Girdhar et al. 2022, Omnivore).

    A map of 8 bits without a unit, and any whose source says ``inverse``, is relative: its farthest
    point is taken as five times as far as its nearest, around the geometric middle of the limits,
    and larger values as farther unless ``inverse`` says otherwise. With the output ``relative``
    this changes nothing.

    A pixel without a measurement (0 in the raw map) is 0 in the result, and does not bleed into its
    neighbours when the map is resized.

    Args:
        size: side of the square result, in pixels.
        output: the representation.
        mean: of the result, over measured pixels.
        std: of the result, over measured pixels.
        distance: x of a factor drawn from [1 - x, 1 + x] that all depths are multiplied by.
        dropout: up to this share of the pixels, drawn for each sample, lose their measurement.
        erasing: probability of a rectangle without measurements.
        baseline_m: distance of the two cameras, for ``stereo``: 0.075 m for Kinect, 0.095 for
            RealSense and Xtion.
        focal: focal length, for ``stereo``: in pixels, or as a share of the picture's width, which
            a number under 10 is taken for. A sample's own, where its source names it, comes before.
        geometry: crop and mirroring.
        distances: unit and limits of the raw map.

    The fields of the last two are keywords of the constructor (`flattened`).
    """

    @flattened(geometry=Geometry, distances=DepthRange)
    def __init__(
        self,
        size: int,
        output: str = "disparity",
        mean: float = 0.0,
        std: float = 1.0,
        distance: float = 0.0,
        dropout: float = 0.0,
        erasing: float = 0.0,
        baseline_m: float | None = None,
        focal: float | None = None,
        *,
        geometry: Geometry,
        distances: DepthRange,
    ) -> None:
        if output not in _OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(_OUTPUTS)}, got {output!r}")
        require_shares(distance=distance, dropout=dropout, erasing=erasing)
        if (output == "stereo") != (baseline_m is not None and focal is not None):
            raise ValueError(
                f"output={output!r} with baseline_m={baseline_m} and focal={focal}: stereo needs "
                "both, and only it does"
            )
        self.baseline_m, self.focal = baseline_m or 0.0, focal or 0.0
        standardisation([mean], [std])
        self.size = size
        self.unit_m = distances.unit_m
        self.range_m = (distances.min_depth_m, distances.max_depth_m)
        self.output = output
        self.mean = mean
        self.std = std
        self.geometry = geometry
        self.distance = distance
        self.dropout = dropout
        self.erasing = erasing

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample's tensor."""
        return (1, self.size, self.size)

    @property
    def is_random(self) -> bool:
        """Whether draws change the result."""
        return self.geometry.is_random or any((self.distance, self.dropout, self.erasing))

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """One depth map.

        Args:
            value: ``[H, W]`` of raw depth, or ``[H, W, 3]`` of three equal channels, 0 or less
                where there is no measurement; or a ``DepthMap``.
            rng: the sample's random choices; None for the central square, unchanged.

        Returns:
            float32 ``[1, size, size]``.

        Raises:
            DecodeError: if the value is not a map of one channel, or contains infinity or NaN.
        """
        random = rng.stream("depth") if rng is not None else None
        pair = self.represented(value, random)
        box = self.geometry.box(rng, *pair.shape[1:])
        result = of_measured(crop_and_resize(pair, box, self.size, "bilinear"))
        if random is not None:
            self.drop(result, random)
            erase(result, self.erasing, random)
        return result

    def represented(self, value: Any, random: np.random.Generator | None) -> Tensor:
        """The standardised representation at the map's own size, and where it is measured.

        Args:
            value: as of ``__call__``.
            random: draws the factor of the distances; None for none.

        Returns:
            float32 ``[2, H, W]``: the values, 0 where nothing is measured, and 1 where something
            is.

        Raises:
            DecodeError: as ``__call__``.
        """
        given = value if isinstance(value, DepthMap) else DepthMap(value)
        values = depth_values(given.values)
        require_finite(values)
        raw = torch.from_numpy(values.astype(np.float32))
        measured = raw > 0
        factor = 1.0 if random is None else 1 + self.distance * random.uniform(-1, 1)
        metres = self._metres(raw, measured, given, values.dtype == np.uint8)
        metres = metres.mul_(factor).clamp_(*self.range_m)
        result = self._represent(metres, measured, given).sub_(self.mean).div_(self.std)
        return torch.stack([result.mul_(measured), measured.float()])

    def drop(self, result: Tensor, random: np.random.Generator) -> None:
        """Takes the measurement of some pixels away, see ``dropout``."""
        if self.dropout:
            share = self.dropout * random.random()
            lost = random.random(result.shape, np.float32) < share
            result[torch.from_numpy(lost)] = 0

    def _metres(self, raw: Tensor, measured: Tensor, given: DepthMap, eight_bits: bool) -> Tensor:
        """Distances; anything goes where nothing is measured."""
        unit = given.unit_m or self.unit_m
        if unit is not None or not (eight_bits or given.inverse):
            scaled = raw * (unit or 0.001)
            return 1 / scaled.clamp_(min=1e-6) if given.inverse else scaled
        if not measured.any():
            return raw.clone()
        least, most = (float(bound) for bound in raw[measured].aminmax())
        share = (raw - least) / max(most - least, 1e-6)
        ratio = 1 / (0.2 + 0.8 * share) if given.inverse else 1 + 4 * share
        nearest, farthest = self.range_m
        return ratio * math.sqrt(nearest * farthest / 5)

    def _stereo(self, given: DepthMap) -> float:
        """Baseline times focal length, in the unit of the transform's own focal length."""
        focal = self.focal
        if given.focal is not None:
            share = self.focal < 10
            focal = given.focal / given.values.shape[1] if share else given.focal
        return (given.baseline_m or self.baseline_m) * focal

    def _represent(self, metres: Tensor, measured: Tensor, given: DepthMap) -> Tensor:
        """The representation; anything goes where nothing is measured."""
        nearest, farthest = self.range_m
        if self.output == "stereo":
            return self._stereo(given) / metres
        if self.output == "disparity":
            return nearest / metres
        if self.output == "depth":
            return metres / farthest
        if self.output == "log_depth":
            return torch.log(metres / nearest) / math.log(farthest / nearest)
        if measured.any():
            nearest, farthest = (float(bound) for bound in metres[measured].aminmax())
        return 1 - 0.8 * (metres - nearest) / max(farthest - nearest, 1e-6)


def of_measured(pair: Tensor) -> Tensor:
    """A resized `DepthTransform.represented` ``[2, H, W]`` as values ``[1, H, W]``.

    Averages over measured pixels only; a pixel that is mostly unmeasured stays so.
    """
    values, share = pair
    return torch.where(share > 0.5, values / share.clamp(min=0.5), 0)[None]
