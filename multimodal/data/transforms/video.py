"""Clips of a video for a vision encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimodal.core.settings import flattened
from multimodal.data.decoding.video import Video
from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.base import Stacked, stack, standardisation
from multimodal.data.transforms.finishing import Standardise, stack_bytes
from multimodal.data.transforms.geometry import Box, Geometry, crop_and_resize, squares


class VideoTransform(Stacked):
    """Evenly spaced frames of one clip or several, all with the same crop and mirroring.

    In training there is one clip, which begins at a random time; otherwise the clips are spread
    evenly over the video, and each is seen in one crop or several. A video shorter than a clip
    repeats its last frame.

    Args:
        size: side of the square frames, in pixels.
        num_frames: of a clip.
        clip_seconds: length of a clip; null for the whole video.
        mean: per channel, of values in [0, 1].
        std: per channel.
        clips: of each video, outside of training; several are embedded individually and averaged.
        crops: of each of these clips: squares, evenly spread along the longer side (ImageBind: 3);
            1 for the middle.
        interpolation: ``bicubic`` or ``bilinear``.
        geometry: crop and mirroring.

    The fields of ``geometry`` are keywords of the constructor (`flattened`).
    """

    @flattened(geometry=Geometry)
    def __init__(
        self,
        size: int,
        num_frames: int,
        clip_seconds: float | None,
        mean: Sequence[float],
        std: Sequence[float],
        clips: int = 1,
        crops: int = 1,
        interpolation: str = "bicubic",
        *,
        geometry: Geometry,
    ) -> None:
        if min(num_frames, clips, crops) < 1:
            raise ValueError(
                f"num_frames={num_frames}, clips={clips} and crops={crops} must be at least 1"
            )
        if clip_seconds is not None and clip_seconds <= 0:
            raise ValueError(f"clip_seconds must be above 0, or null, got {clip_seconds}")
        if interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation must be bicubic or bilinear, got {interpolation!r}")
        means, deviations = standardisation(mean, std)
        if len(means) != 3:
            raise ValueError(f"mean and std need 3 numbers, got {len(means)}")
        self.size = size
        self.num_frames = num_frames
        self.clip_seconds = clip_seconds
        self.clips = clips
        self.crops = crops
        self.geometry = geometry
        self.interpolation = interpolation
        factor, offset = 1 / (255 * deviations), -means / deviations
        self.finish = Standardise(tuple(factor.tolist()), tuple(offset.tolist()), axis=-4)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one clip's tensor."""
        return (3, self.num_frames, self.size, self.size)

    @property
    def is_random(self) -> bool:
        """Whether draws change the result."""
        return self.geometry.is_random or self.clip_seconds is not None

    def __call__(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """The clips of one video.

        Args:
            value: a ``Video``.
            rng: the sample's random choices; None for evenly spread clips, unchanged.

        Returns:
            float32 ``[3, num_frames, size, size]``, standardised; of several clips or crops,
            outside of training, ``[clips * crops, 3, num_frames, size, size]``.

        Raises:
            DecodeError: if the value is not a video, or has no frames.
        """
        return self.finish(self.prepare(value, rng))

    def prepare(self, value: Any, rng: SampleRNG | None) -> Tensor:
        """The same as uint8, not yet standardised.

        Raises:
            DecodeError: as of the whole.
        """
        if not isinstance(value, Video):
            raise DecodeError("unsupported", f"expected a video, got {type(value).__name__}")
        times = self.times(value.seconds, rng)
        order = np.argsort(times, axis=None, kind="stable")
        frames = value.frames(times.ravel()[order].tolist())
        height, width = frames.shape[1:3]
        if rng is None:
            boxes = squares(height, width, self.crops)
        else:
            boxes = [self.geometry.box(rng, height, width)]
        places = torch.from_numpy(np.argsort(order))
        views = [self._view(frames, box)[:, places] for box in boxes]
        if len(boxes) == len(times) == 1:
            return views[0]
        clips = torch.stack(views)
        clips = clips.view(len(boxes), 3, *times.shape, self.size, self.size)
        return clips.permute(2, 0, 1, 3, 4, 5).flatten(0, 1)

    def _view(self, frames: NDArray[np.uint8], box: Box) -> Tensor:
        """One part of all frames: ``[3, T, size, size]``."""
        return torch.stack(
            [
                crop_and_resize(
                    torch.from_numpy(frame).permute(2, 0, 1), box, self.size, self.interpolation
                )
                for frame in frames
            ],
            dim=1,
        )

    def collate(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The batch ``[B, ...]``; there is nothing to mask."""
        finished = [self.finish(each) if each.dtype == torch.uint8 else each for each in inputs]
        return stack(finished), None

    def collate_bytes(self, inputs: list[Tensor]) -> tuple[Tensor, None] | None:
        """The batch as uint8, which ``finish`` completes; None where floats are there."""
        if any(clip.dtype != torch.uint8 for clip in inputs):
            return None
        return stack_bytes(inputs), None

    def times(self, seconds: float, rng: SampleRNG | None) -> np.ndarray[Any, np.dtype[np.float64]]:
        """When the frames are shown: ``[clips, num_frames]`` seconds; one clip in training."""
        length = seconds if self.clip_seconds is None else min(self.clip_seconds, seconds)
        spare = seconds - length
        if rng is None:
            places = (np.arange(self.clips) + 0.5) / self.clips
        else:
            places = np.array([rng.moment()])
        # Frames are at the centres of equal parts of their clip.
        parts = (np.arange(self.num_frames) + 0.5) / self.num_frames * length
        starts: np.ndarray[Any, np.dtype[np.float64]] = places[:, None] * spare
        return starts + parts
