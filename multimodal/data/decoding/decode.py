"""From the bytes of a member to a value. Members are untrusted.

Decoders are chosen from an allowlist by the last extension. Nothing here can execute code (there is
no pickle), and the decoded size is read from the header and checked against ``Limits`` before
anything is decoded.
"""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, ImageOps

from multimodal.data.decoding.jpeg import decode_jpeg, plain_size
from multimodal.data.decoding.video import CONTAINERS, Video, open_video
from multimodal.data.errors import DecodeError

_PICTURES = ("PNG", "JPEG", "WEBP", "GIF")
_ORIENTATION = 0x0112  # the EXIF tag
_SOUNDS = ("OGG", "WAV", "WAVEX", "FLAC")


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest values that are decoded; anything larger is a bad sample.

    Attributes:
        max_bytes: of a member in its shard.
        max_pixels: of an image.
        max_audio_values: frames x channels of a sound (the default: ten minutes at 48 kHz stereo).
        max_video_seconds: length of a video; the size of its frames counts as that of an image.
        max_array_bytes: of an array.
        max_text_bytes: of a text or JSON member.
    """

    max_bytes: int = 1 << 28
    max_pixels: int = 1 << 26
    max_audio_values: int = 57_600_000
    max_video_seconds: float = 3600.0
    max_array_bytes: int = 1 << 28
    max_text_bytes: int = 1 << 22

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Signal:
    """Values over time, with their rate.

    Attributes:
        samples: ``[channels, T]`` float32.
        rate: samples per second, in Hz.
    """

    samples: NDArray[np.float32]
    rate: float


Value: TypeAlias = "NDArray[Any] | Signal | Video | str"


# Height and width of an image -> the smallest sufficient ones.
MinSize: TypeAlias = "Callable[[int, int], tuple[int, int]]"


def decode(member: str, data: bytes, limits: Limits, min_size: MinSize | None = None) -> Any:
    """Decodes one member.

    Args:
        member: its name; the last extension, in any case, chooses the decoder.
        data: its bytes.
        limits: the sizes that are accepted.
        min_size: the smallest size that is sufficient; JPEGs are decoded faster at a reduced size.

    Returns:
        * png, jpg, jpeg, webp, gif: uint8 ``[H, W, 3]``, turned upright by EXIF, on white where it
          is transparent, the first frame of an animation; 16-bit greyscale as uint16 ``[H, W]``,
          and 32-bit as int32;
        * ogg, wav, flac: ``Signal`` with values in about [-1, 1];
        * mp4, mov, webm, mkv, avi: ``Video``, whose frames are still encoded;
        * npy: the array, read-only, of bool, integer or floating type;
        * txt: text; json: what the document holds.

    Raises:
        DecodeError: with the reason ``unsupported``, ``empty``, ``too_large`` or ``corrupt``.
    """
    extension = member.rpartition(".")[2].lower()
    decoder = _DECODERS.get(extension)
    if decoder is None:
        raise DecodeError(
            "unsupported", f"no decoder for {member!r}; there are: {', '.join(_DECODERS)}"
        )
    if not data:
        raise DecodeError("empty", f"{member!r} has no bytes")
    _check_size(len(data), limits.max_bytes, "max_bytes")
    try:
        if decoder is _image:
            return _image(data, limits, min_size)
        return decoder(data, limits)
    except DecodeError:
        raise
    except ModuleNotFoundError:  # a package that decodes this is not installed
        raise
    except Exception as error:  # libraries raise all sorts of errors on damaged input
        raise DecodeError("corrupt", f"{member!r}: {type(error).__name__}: {error}") from error


def _check_size(actual: int, most: int, limit: str) -> None:
    if actual > most:
        raise DecodeError("too_large", f"{actual} is over {limit}={most}")


def _image(data: bytes, limits: Limits, min_size: MinSize | None = None) -> NDArray[Any]:
    if (plain := plain_size(data)) is not None:
        _check_size(plain[0] * plain[1], limits.max_pixels, "max_pixels")
        return decode_jpeg(data, *plain, plain if min_size is None else min_size(*plain))
    # Pillow has its own, fixed limit, which raises while the header is read.
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_PICTURES)
    except Image.DecompressionBombError as error:
        raise DecodeError("too_large", str(error)) from error
    _check_size(image.width * image.height, limits.max_pixels, "max_pixels")
    turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) != 1
    if image.format == "JPEG" and image.mode == "RGB" and not turned:
        height, width = image.height, image.width
        enough = min_size(height, width) if min_size is not None else (height, width)
        return decode_jpeg(data, height, width, enough)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # "I;16", "I;16B" or "I"
        return np.array(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _audio(data: bytes, limits: Limits) -> Signal:
    import soundfile  # and libsndfile, only where sounds are read

    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        if sound.format not in _SOUNDS:
            raise DecodeError("unsupported", f"{sound.format} is none of {', '.join(_SOUNDS)}")
        _check_size(sound.frames * sound.channels, limits.max_audio_values, "max_audio_values")
        samples = sound.read(sound.frames, dtype="float32", always_2d=True)
        rate = float(sound.samplerate)
    if len(samples) == 0:
        raise DecodeError("empty", "the sound has no samples")
    return Signal(np.ascontiguousarray(samples.T), rate)


def _video(extension: str, data: bytes, limits: Limits) -> Video:
    return open_video(data, extension, limits.max_pixels, limits.max_video_seconds)


def _array(data: bytes, limits: Limits) -> NDArray[Any]:
    stream = io.BytesIO(data)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(stream)
    if version not in readers:
        raise DecodeError("unsupported", f".npy version {version}")
    shape, fortran_order, dtype = readers[version](stream)
    if dtype.kind not in "biuf":  # objects would need pickle
        raise DecodeError("unsupported", f"an array of {dtype}: only numbers are read")
    size = math.prod(shape) * dtype.itemsize
    _check_size(size, limits.max_array_bytes, "max_array_bytes")
    start = stream.tell()
    if len(data) - start != size:
        raise DecodeError("corrupt", f"{len(data) - start} bytes for {shape} of {dtype}")
    flat = np.frombuffer(data, dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _text(data: bytes, limits: Limits) -> str:
    _check_size(len(data), limits.max_text_bytes, "max_text_bytes")
    text = data.decode("utf-8").strip()
    if not text:
        raise DecodeError("empty", "the text has no characters")
    return text


def _json(data: bytes, limits: Limits) -> Any:
    _check_size(len(data), limits.max_text_bytes, "max_text_bytes")
    return json.loads(data)


_DECODERS: dict[str, Callable[[bytes, Limits], Any]] = {
    **dict.fromkeys(("png", "jpg", "jpeg", "webp", "gif"), _image),
    **dict.fromkeys(("ogg", "wav", "flac"), _audio),
    **{extension: functools.partial(_video, extension) for extension in CONTAINERS},
    "npy": _array,
    "txt": _text,
    "json": _json,
}
