"""BMP, TIFF, AVIF and JPEG 2000 beside PNG, JPEG, WebP and GIF, which are in test_decode."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image, features

from multimodal.data.decoding.decode import Limits, decode
from multimodal.data.errors import DecodeError
from multimodal.data.transforms.image import ImageTransform

LIMITS = Limits()
RANDOM = np.random.default_rng(0)
COARSE = Image.fromarray(RANDOM.integers(0, 256, (6, 8, 3), np.uint8))
PHOTO = np.asarray(COARSE.resize((64, 48), Image.Resampling.BICUBIC))


def encode(image: Image.Image | np.ndarray, fmt: str, **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def reason(member: str, data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(member, data, limits)
    return caught.value.reason


FORMATS = {
    "bmp": ("BMP", {}, 0),
    "tif": ("TIFF", {}, 0),
    "lzw.tiff": ("TIFF", {"compression": "tiff_lzw"}, 0),
    "deflate.TIF": ("TIFF", {"compression": "tiff_adobe_deflate"}, 0),
    "jpeg.tif": ("TIFF", {"compression": "jpeg"}, 3),
    "jp2": ("JPEG2000", {}, 0),
    "j2k": ("JPEG2000", {"no_jp2": True}, 0),
    "avif": ("AVIF", {"quality": 95}, 3),
}


@pytest.mark.parametrize("member", FORMATS)
def test_pictures_of_each_format(member):
    fmt, options, tolerance = FORMATS[member]
    if fmt == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = encode(PHOTO, fmt, **options)
    value = decode(member, data, LIMITS)
    assert value.dtype == np.uint8
    assert value.shape == PHOTO.shape
    assert np.abs(value.astype(int) - PHOTO).mean() <= tolerance
    assert np.array_equal(decode("png", data, LIMITS), value)  # by content, whatever its name
    assert reason(member, data, Limits(max_pixels=64 * 48 - 1)) == "too_large"
    for share in (0.5, 0.9, 0.97):
        assert reason(member, data[: int(share * len(data))]) == "corrupt"


@pytest.mark.parametrize("big_endian", [False, True])
def test_tiffs_keep_more_than_eight_bits(big_endian):
    sixteen = RANDOM.integers(0, 65536, (9, 7)).astype(np.uint16)
    image = Image.fromarray(sixteen)
    if big_endian:
        image = Image.frombytes("I;16B", image.size, sixteen.astype(">u2").tobytes())
    data = encode(image, "TIFF")
    assert data[:2] == (b"MM" if big_endian else b"II")
    value = decode("tif", data, LIMITS)
    assert value.dtype == np.dtype("uint16")
    assert np.array_equal(value, sixteen)
    for values in (RANDOM.random((9, 7), np.float32), RANDOM.integers(-9, 99999, (9, 7), np.int32)):
        value = decode("tif", encode(values, "TIFF"), LIMITS)
        assert value.dtype == values.dtype
        assert np.array_equal(value, values)
    eight = RANDOM.integers(0, 256, (9, 7), np.uint8)
    assert np.array_equal(
        decode("tif", encode(eight, "TIFF"), LIMITS), eight[..., None].repeat(3, 2)
    )


def test_floating_pictures_are_shown_in_their_range():
    transform = ImageTransform(8, [0.0] * 3, [1.0] * 3)
    ramp = np.linspace(0.25, 0.75, 64, dtype=np.float32).reshape(8, 8)
    shown = transform(decode("tif", encode(ramp, "TIFF"), LIMITS), None)
    torch.testing.assert_close(shown, torch.from_numpy(ramp).expand(3, 8, 8), atol=0.003, rtol=0)
    for wide in (ramp * 4000 - 2000, (ramp * 400_000).astype(np.int32)):
        shown = transform(decode("tif", encode(wide, "TIFF"), LIMITS), None)
        expected = torch.from_numpy((ramp - 0.25) * 2).expand(3, 8, 8)
        torch.testing.assert_close(shown, expected, atol=0.004, rtol=0)
    flat = transform(decode("tif", encode(np.full((8, 8), 7, np.float32), "TIFF"), LIMITS), None)
    assert flat.isfinite().all()
    ramp[3, 3] = np.nan
    assert reason("tif", encode(ramp, "TIFF")) == "not_finite"


def patched(data: bytes, place: int, content: bytes) -> bytes:
    return data[:place] + content + data[place + len(content) :]


def tiff(**changed: int) -> bytes:
    """A header of one page, whose pixels are missing."""
    tags = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 278: 8, 273: 200, 279: 64}
    tags |= {int(name.removeprefix("tag")): value for name, value in changed.items()}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())]
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(400)


def bombs() -> dict[str, bytes]:
    side = struct.pack(">II", 60_000, 60_000)
    bmp, jp2 = encode(PHOTO, "BMP"), encode(PHOTO, "JPEG2000")
    found = {
        "bmp": patched(bmp, 18, struct.pack("<ii", 60_000, 60_000)),
        "tif": tiff(tag256=60_000, tag257=60_000),
        "tile.tif": tiff(tag322=60_000, tag323=60_000, tag324=200, tag325=64),
        "jp2": patched(jp2, jp2.index(b"ihdr") + 4, side),
        "codestream.jp2": patched(jp2, jp2.index(b"\xff\x4f\xff\x51") + 8, side),
    }
    if features.check("avif"):
        avif = encode(PHOTO, "AVIF")
        found["avif"] = patched(avif, avif.index(b"ispe") + 8, struct.pack(">II", 16_000, 16_000))
    return found


BOMBS = bombs()


@pytest.mark.parametrize("member", BOMBS)
def test_bombs_are_rejected_from_their_headers(member):
    tracemalloc.start()
    assert reason(member, BOMBS[member]) == "too_large"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("member", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_are_bad_samples(member):
    fmt, options, _ = FORMATS[member]
    if fmt == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = encode(PHOTO[:16, :16].copy(), fmt, **options)
    small, outcomes = Limits(max_pixels=1 << 16), set()
    random = np.random.default_rng(3)
    for _ in range(60):
        damaged = bytearray(data)
        for place in random.integers(len(data), size=3):
            damaged[place] = random.integers(256)
        try:
            decode(member, bytes(damaged), small)
            outcomes.add("decoded")
        except DecodeError as error:
            outcomes.add(error.reason)
    assert outcomes <= {"decoded", "corrupt", "too_large", "unsupported", "empty", "not_finite"}
