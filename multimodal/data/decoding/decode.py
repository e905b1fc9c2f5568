"""From the bytes of a member to a value. Members are untrusted.

Decoders are chosen from an allowlist by the last extension. Nothing here can execute code (there is
no pickle), and the decoded size is read from the header and checked against ``Limits`` before
anything is decoded. Packing, `verify` and training all call `decode`, so that what one takes the
others take.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from multimodal.data.decoding.arrays import decode_array
from multimodal.data.decoding.dicom import decode_dicom
from multimodal.data.decoding.pictures import decode_picture
from multimodal.data.decoding.points import decode_points
from multimodal.data.decoding.sounds import decode_sound
from multimodal.data.decoding.values import (
    DepthMap,
    Limits,
    MinSize,
    Request,
    Signal,
    depth_values,
    require_finite,
)
from multimodal.data.decoding.video import Video, decode_video
from multimodal.data.errors import DecodeError
from multimodal.data.shards.formats import FORMATS, kind_in_name

__all__ = ["DepthMap", "Limits", "MinSize", "Signal", "Value", "decode"]

_OBJECT = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>")

Value: TypeAlias = "NDArray[Any] | DepthMap | Signal | Video | str"


def decode(
    member: str,
    data: bytes,
    limits: Limits,
    min_size: MinSize | None = None,
    kind: str | None = None,
) -> Any:
    """Decodes one member.

    Args:
        member: its name; the last extension, in any case, chooses the decoder.
        data: its bytes.
        limits: the sizes that are accepted.
        min_size: the smallest size that is sufficient; JPEGs are decoded faster at a reduced size.
        kind: what it holds, as the manifest says; None: as its name says.

    Returns:
        * pictures: uint8 ``[H, W, 3]``, turned upright by EXIF, on white where it is transparent,
          the first frame of an animation; greyscale of more than 8 bits as ``[H, W]`` of uint16,
          int32 or float32;
        * of the kind depth: one channel ``[H, W]``, as stored;
        * sounds: ``Signal`` with values in about [-1, 1];
        * videos: ``Video``, whose frames are still encoded;
        * npy: the array, read-only, of bool, integer or floating type; ply: its vertices,
          ``[points, properties]``; pictures whose ``kind`` is array: their numbers as stored,
          bands or slices first;
        * txt: text; json: what the document holds.

    Raises:
        DecodeError: with the reason ``unsupported``, ``empty``, ``too_large``, ``corrupt`` or
            ``not_finite``.
        MissingExtraError: if the package that decodes this is not installed.
    """
    extension = member.rpartition(".")[2].lower()
    if extension not in FORMATS:
        raise DecodeError(
            "unsupported", f"no decoder for {member!r}; there are: {', '.join(FORMATS)}"
        )
    if not data:
        raise DecodeError("empty", f"{member!r} has no bytes")
    limits.check("max_bytes", len(data))
    kind = kind or kind_in_name(member) or FORMATS[extension].kind
    try:
        value = _DECODERS[FORMATS[extension].decoder](data, Request(kind, limits, min_size))
    except DecodeError:
        raise
    except ModuleNotFoundError:  # a package that decodes this is not installed
        raise
    except Exception as error:  # libraries raise all sorts of errors on damaged input
        # Without addresses in memory: equal bytes are refused in equal words.
        words = _OBJECT.sub("it", str(error))
        raise DecodeError("corrupt", f"{member!r}: {type(error).__name__}: {words}") from error
    if kind == "depth":
        value = depth_values(value)
    if isinstance(value, np.ndarray):
        require_finite(value)
    return value


def _text(data: bytes, request: Request) -> str:
    request.limits.check("max_text_bytes", len(data))
    text = data.decode("utf-8-sig").strip()
    if not text:
        raise DecodeError("empty", "the text has no characters")
    return text


def _json(data: bytes, request: Request) -> Any:
    request.limits.check("max_text_bytes", len(data))
    return json.loads(data)


# Their libraries are imported when they are first needed.
_DECODERS: dict[str, Callable[[bytes, Request], Any]] = {
    "picture": decode_picture,
    "sound": decode_sound,
    "video": decode_video,
    "array": decode_array,
    "dicom": decode_dicom,
    "points": decode_points,
    "text": _text,
    "json": _json,
}
