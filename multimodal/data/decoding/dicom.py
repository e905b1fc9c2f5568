"""DICOM images, by pydicom: pixels alone, never what the header says of a patient.

Modality and VOI look-up follow DICOM PS3.3, C.11.1 and C.11.2.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimodal.core.extras import module_of
from multimodal.data.decoding.jpeg import coded_pixels
from multimodal.data.decoding.values import Limits, Request
from multimodal.data.errors import DecodeError

_DEFLATED = "1.2.840.10008.1.2.1.99"
_RUN_LENGTH = "1.2.840.10008.1.2.5"
_PIXELS = 0x7FE00010


def is_dicom(data: bytes) -> bool:
    """Whether these are the first bytes of a DICOM file."""
    return data[128:132] == b"DICM"


def decode_dicom(data: bytes, request: Request) -> NDArray[Any]:
    """The pixels of a DICOM file.

    Returns:
        * as a picture, its first frame: uint16 ``[H, W]``, where the file's first window or VOI
          look-up table spans black to white, without one the smallest to the largest value, bright
          where the photometric interpretation says so; in colour uint8 ``[H, W, 3]``;
        * as an array: float32 ``[H, W]`` or ``[frames, H, W]`` of modality values (CT: Hounsfield
          units).

    Raises:
        DecodeError: if it has no pixels, is too large, or its compression cannot be read.
        MissingExtraError: if pydicom is not installed.
        Exception: pydicom's own, if it is damaged.
    """
    pydicom = module_of("dicom", "pydicom", "decoding DICOM")
    if not is_dicom(data):
        raise DecodeError("corrupt", "no DICOM file: 'DICM' is not at byte 128")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that are not to the standard, mostly harmless
        return _pixels(pydicom, data, request)


def check_keywords(names: Sequence[str]) -> None:
    """Refuses names that are not DICOM keywords.

    Raises:
        ValueError: naming it.
        MissingExtraError: if pydicom is not installed.
    """
    pydicom = module_of("dicom", "pydicom", "reading DICOM headers")
    for name in names:
        if pydicom.datadict.tag_for_keyword(name) is None:
            raise ValueError(f"{name!r} is not a DICOM keyword (try Modality, BodyPartExamined)")


def header_values(data: bytes, names: list[str]) -> dict[str, str | float | list[Any]]:
    """The values of a header that are named, by DICOM keyword; those that it lacks are left out.

    Raises:
        ValueError: if a name is not a DICOM keyword.
        DecodeError: if the file is not a DICOM, or too large when it is inflated.
        MissingExtraError: if pydicom is not installed.
        Exception: pydicom's own, if the file is damaged.
    """
    check_keywords(names)
    pydicom = module_of("dicom", "pydicom", "reading DICOM headers")
    if not is_dicom(data):
        raise DecodeError("corrupt", "no DICOM file: 'DICM' is not at byte 128")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _refuse_inflated(pydicom, data, Limits())
        header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=names)
        present = [name for name in names if header.get(name) not in (None, "")]
        return {name: _plain(header[name].value) for name in present}


def _plain(value: Any) -> Any:
    if isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue":
        return [_plain(part) for part in value]
    return float(value) if type(value).__name__ in ("DSfloat", "DSdecimal") else str(value)


def _pixels(pydicom: Any, data: bytes, request: Request) -> NDArray[Any]:
    _refuse_inflated(pydicom, data, request.limits)
    file = pydicom.dcmread(io.BytesIO(data))
    if _PIXELS not in file:
        raise DecodeError("empty", "the DICOM file has no pixels")
    frames, as_array = _check_size(pydicom, file, request), request.kind == "array"
    try:
        stored = pydicom.pixels.pixel_array(file, index=None if as_array and frames > 1 else 0)
    except (RuntimeError, NotImplementedError) as error:
        missing = "missing dependencies" in str(error) or isinstance(error, NotImplementedError)
        raise DecodeError("unsupported" if missing else "corrupt", str(error)) from error
    if file.SamplesPerPixel > 1:
        return np.asarray(stored if stored.dtype == np.uint8 else stored >> 8, np.uint8)
    if file.PhotometricInterpretation == "PALETTE COLOR" and not as_array:
        colours = pydicom.pixels.apply_color_lut(stored, file)
        eight: NDArray[Any] = colours if colours.dtype == np.uint8 else colours >> 8
        return eight.astype(np.uint8)[..., :3]
    _share_groups(file)
    values = pydicom.pixels.apply_modality_lut(stored, file)
    if as_array:
        return np.asarray(values, np.float32)
    shown = _voi(pydicom, file, values, _measured(file, stored))
    if file.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.round(shown * 65535).astype(np.uint16)


def _check_size(pydicom: Any, file: Any, request: Request) -> int:
    """Judges the header's size and that of compressed frames; returns the number of frames."""
    limits, pixels = request.limits, int(file.Rows) * int(file.Columns)
    frames = max(1, int(file.get("NumberOfFrames") or 1))
    limits.check("max_pixels", pixels)
    limits.check("max_bytes", frames)
    if request.kind == "array":
        limits.check("max_array_bytes", 4 * pixels * frames * int(file.SamplesPerPixel))
    if file.file_meta.TransferSyntaxUID.is_encapsulated:
        for index in range(frames if request.kind == "array" else 1):
            frame = pydicom.encaps.get_frame(file.PixelData, index, number_of_frames=frames)
            # A decoder follows the frame's own header, whatever the file's says.
            limits.check("max_pixels", coded_pixels(frame))
            if file.file_meta.TransferSyntaxUID == _RUN_LENGTH:
                limits.check("max_array_bytes", _unpacked(frame, limits.max_array_bytes))
    return frames


def _unpacked(frame: bytes, enough: int) -> int:
    """Bytes that a frame of run lengths (PackBits) becomes; their bound if that is enough."""
    if 64 * len(frame) <= enough:
        return 64 * len(frame)
    at, size = 64, 0
    while at < len(frame) and size <= enough:
        code = frame[at]
        at += 2 if code > 128 else 2 + code
        size += 257 - code if code > 128 else 1 + code
    return size


def _refuse_inflated(pydicom: Any, data: bytes, limits: Limits) -> None:
    """Refuses a deflated file that grows beyond the limit; pydicom would inflate all of it."""
    stream = io.BytesIO(data)
    stream.seek(132)
    meta = pydicom.filereader._read_file_meta_info(stream)
    if meta.get("TransferSyntaxUID") == _DEFLATED:
        inflated = zlib.decompressobj(-zlib.MAX_WBITS)
        most = limits.max_bytes
        limits.check("max_bytes", len(inflated.decompress(data[stream.tell() :], most + 1)))


def _share_groups(file: Any) -> None:
    """Look-ups of an enhanced file, which has them in groups that all of its frames share."""
    for shared in file.get("SharedFunctionalGroupsSequence") or []:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for group in shared.get(name) or []:
                for element in group:
                    file.setdefault(element.tag, element)


def _measured(file: Any, stored: NDArray[Any]) -> NDArray[np.bool_]:
    padding = file.get("PixelPaddingValue")
    real = stored != padding if isinstance(padding, int) else np.ones(stored.shape, bool)
    return real if real.any() else ~real


def _voi(
    pydicom: Any, file: Any, values: NDArray[Any], measured: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Values of interest in [0, 1]."""
    if file.get("VOILUTSequence"):
        bits = int(file.VOILUTSequence[0].LUTDescriptor[2])
        whole = np.asarray(np.round(values), np.int32)
        shown = pydicom.pixels.apply_voi(whole, file, index=0)
        return np.asarray(shown, np.float64) / (2.0**bits - 1)
    centre, width = _first(file.get("WindowCenter")), _first(file.get("WindowWidth"))
    values = np.asarray(values, np.float64)
    if centre is None or width is None or not width > 0:
        least, most = values[measured].min(), values[measured].max()
        return np.asarray(np.clip((values - least) / max(most - least, 1e-9), 0, 1), np.float64)
    function = str(file.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        steep = np.clip(-4 * (values - centre) / width, -700, 700)
        return np.asarray(1 / (1 + np.exp(steep)), np.float64)
    if function == "LINEAR":
        centre, width = centre - 0.5, max(width - 1, 1e-9)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
