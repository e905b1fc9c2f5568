"""Clips out of arrays of frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multimodal.data.draw import Draw
from multimodal.data.errors import DecodeError
from multimodal.data.transforms.base import Stacked, standardisation
from multimodal.data.transforms.geometry import Geometry, crop_and_resize


class FramesTransform(Stacked):
    """Clips of a video that is given as all its frames, one crop for all.

    Every clip has ``num_frames`` evenly spaced frames of its part of the video. In training the
    one clip lies anywhere; otherwise ``num_clips`` parts follow each other.

    Args:
        size: side of the square frames, in pixels.
        num_frames: frames in a clip.
        num_clips: clips of a video, outside of training.
        mean: per channel, of values in [0, 1].
        std: per channel.
        scale: range of the random crop's share of the area; [1, 1] for the central square.
        ratio: range of the random crop's width / height.
        flip: probability of mirroring left and right.
    """

    def __init__(
        self,
        size: int,
        num_frames: int,
        num_clips: int,
        mean: Sequence[float],
        std: Sequence[float],
        scale: Sequence[float] = (1.0, 1.0),
        ratio: Sequence[float] = (0.75, 1.3333),
        flip: float = 0.0,
    ) -> None:
        if num_frames < 1 or num_clips < 1:
            raise ValueError(
                f"num_frames={num_frames} and num_clips={num_clips} must be at least 1"
            )
        means, deviations = standardisation(mean, std)
        self.size = size
        self.num_frames = num_frames
        self.num_clips = num_clips
        self.geometry = Geometry(scale, ratio, flip)
        self._mean = torch.from_numpy(255 * means).view(3, 1, 1, 1)
        self._std = torch.from_numpy(255 * deviations).view(3, 1, 1, 1)

    @property
    def is_random(self) -> bool:
        """Whether two uses of one sample may differ."""
        return True

    def __call__(self, value: Any, draw: Draw | None) -> Tensor:
        """The clips of one video.

        Args:
            value: uint8 ``[F, H, W, 3]``.
            draw: the sample's random choices; None for all clips, centred.

        Returns:
            float32 ``[3, num_frames, size, size]`` in training or if there is one clip, else
            ``[num_clips, 3, num_frames, size, size]``.

        Raises:
            DecodeError: if the value is no array of frames.
        """
        is_video = isinstance(value, np.ndarray) and value.ndim == 4 and value.shape[3] == 3
        if not is_video or value.dtype != np.uint8 or 0 in value.shape:
            found = getattr(value, "shape", type(value).__name__)
            raise DecodeError("unsupported", f"expected frames [F, H, W, 3] of uint8, got {found}")
        count, box = len(value), self.geometry.box(draw, *value.shape[1:3])
        clips = []
        for start, length in self._parts(count, draw):
            middles = start + (np.arange(self.num_frames) + 0.5) * length / self.num_frames
            frames = value[np.minimum(middles.astype(int), count - 1)]
            pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
            cut = torch.stack([crop_and_resize(p, box, self.size, "bicubic") for p in pixels])
            clip = cut.transpose(0, 1).to(torch.float32)
            clips.append(clip.sub_(self._mean).div_(self._std))
        return clips[0] if len(clips) == 1 else torch.stack(clips)

    def _parts(self, count: int, draw: Draw | None) -> list[tuple[float, float]]:
        """Start and length, in frames, of every clip's part."""
        length = count / self.num_clips
        if draw is not None:
            return [(float(draw.stream("video").random()) * (count - length), length)]
        return [(number * length, length) for number in range(self.num_clips)]
