"""What a user has in hand, a path, a picture, an array, as the value that a transform takes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from multimodal.data.decoding.decode import Limits, Signal, decode
from multimodal.data.decoding.video import Video
from multimodal.data.errors import DecodeError
from multimodal.data.transforms.base import Transform
from multimodal.data.transforms.image import ImageTransform
from multimodal.data.transforms.text import TextTransform

Given: TypeAlias = "str | Path | Image.Image | Signal | Video | Iterable[Any]"
"""The inputs of one modality: one of them, or a sequence of them."""

_SINGLE = (str, Path, Image.Image, Signal, Video)


def listed(given: Given) -> Sequence[Any]:
    """A single text, path, picture, signal or video as a sequence of one."""
    if isinstance(given, _SINGLE):
        return [given]
    if isinstance(given, np.ndarray | Tensor):
        return given  # type: ignore[return-value]
    return list(given)


class Reader:
    """Makes inputs of a tower of what a user has.

    * A text modality takes strings, and paths (`pathlib.Path`) of text files.
    * The others take paths, as `str` or `Path`, of the files that training reads: the extension
      chooses the decoder. A `.npy` holds an array.
    * Pictures: `PIL.Image` of any mode, uint8 arrays ``[H, W, 3]``, ``[H, W, 4]`` or ``[H, W]``.
    * Sounds and other signals: `Signal`, or ``(samples, rate)`` with ``[T]`` or ``[C, T]``.
    * Arrays of other modalities are taken as they are; tensors as arrays.

    Args:
        modality: its name, for messages.
        transform: of that modality.
        limits: sizes that are decoded.
    """

    def __init__(self, modality: str, transform: Transform, limits: Limits | None = None) -> None:
        self.modality = modality
        self.transform = transform
        self.limits = limits or Limits()

    def __call__(self, number: int, given: Any) -> Tensor:
        """The input of one sample.

        Args:
            number: of it among those that were given, for messages.
            given: see above.

        Raises:
            DecodeError: if it is not what the modality takes; the message names it.
            OSError: if a file cannot be read.
        """
        try:
            return self.transform(self._value(given), None)
        except DecodeError as error:
            where = f"{self.modality}[{number}]"
            if isinstance(given, Path) or (isinstance(given, str) and not self._is_text):
                where += f" ({given})"
            raise DecodeError(error.reason, f"{where}: {error.detail}") from None

    @property
    def _is_text(self) -> bool:
        return isinstance(self.transform, TextTransform)

    def _value(self, given: Any) -> Any:
        """What the file or the object holds, as a source would decode it."""
        if isinstance(given, str | Path) and not (self._is_text and isinstance(given, str)):
            return _file(Path(given).expanduser(), self.limits)
        if isinstance(given, Image.Image):
            return _picture(given)
        if isinstance(given, Tensor):
            given = given.detach().cpu().numpy()
        if isinstance(given, tuple) and len(given) == 2:
            return _signal(*given)
        if isinstance(given, np.ndarray) and isinstance(self.transform, ImageTransform):
            flat = given.ndim == 2 or (given.ndim == 3 and given.shape[2] == 4)
            return _picture(Image.fromarray(given)) if flat and given.dtype == np.uint8 else given
        return given


def _file(path: Path, limits: Limits) -> Any:
    data = path.read_bytes()
    return decode(f"file{path.suffix}" if path.suffix else path.name, data, limits)


def _picture(image: Image.Image) -> Any:
    """As its file would be decoded: upright, on white where it is transparent."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        return np.asarray(upright)
    if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"):
        upright = upright.convert("RGB")
    file = io.BytesIO()
    upright.save(file, "PNG", compress_level=0)
    return decode("picture.png", file.getvalue(), Limits(max_bytes=1 << 40))


def _signal(samples: Any, rate: Any) -> Signal:
    values = np.asarray(samples.detach().cpu() if isinstance(samples, Tensor) else samples)
    is_rate = isinstance(rate, int | float | np.number) and rate > 0
    if values.ndim not in (1, 2) or values.dtype.kind not in "fiu" or not is_rate:
        raise DecodeError(
            "unsupported",
            "expected (samples, rate): [T] or [C, T] numbers and samples per second; got "
            f"{list(values.shape)} of {values.dtype} and rate {rate!r}",
        )
    if values.dtype.kind in "iu":
        raise DecodeError(
            "unsupported", f"samples of {values.dtype}: give floats, of sounds in [-1, 1]"
        )
    return Signal(np.ascontiguousarray(np.atleast_2d(values), np.float32), float(rate))
