from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from data_helpers import audio_bytes, image_bytes, npy_bytes
from PIL import Image

from multimodal.data.decoding.decode import Limits, Signal, decode
from multimodal.data.errors import DecodeError

LIMITS = Limits()
PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def reason(member: str, data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(member, data, limits)
    assert caught.value.detail
    return caught.value.reason


def encode(image: Image.Image, fmt: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# Pictures


@pytest.mark.parametrize(("fmt", "extension"), [("PNG", "png"), ("WEBP", "noto.webp")])
def test_lossless_pictures_come_back(fmt, extension):
    options = {"lossless": True} if fmt == "WEBP" else {}
    value = decode(extension, image_bytes(PICTURE, fmt, **options), LIMITS)
    assert value.dtype == np.uint8
    assert np.array_equal(value, PICTURE)


def test_jpeg_by_both_extensions_in_any_case():
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    for extension in ("jpg", "jpeg", "photo.JPG"):
        value = decode(extension, image_bytes(flat, "JPEG", quality=95), LIMITS)
        assert np.abs(value.astype(int) - flat).max() <= 3


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}), ("RGB", {"subsampling": 0}), ("L", {}),
        ("RGB", {"progressive": True}), ("CMYK", {}), ("RGB", {"keep_rgb": True}),
    ],
)  # fmt: skip
def test_jpegs_of_every_kind_are_pillows(mode, options):
    coarse = Image.fromarray(PICTURE).resize((50, 34), Image.Resampling.BICUBIC)
    data = encode(coarse.convert(mode), "JPEG", quality=90, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode("jpg", data, LIMITS), expected)
    assert reason("jpg", data, Limits(max_pixels=50 * 34 - 1)) == "too_large"
    assert reason("jpg", data[:-40]) == "corrupt"


def test_sixteen_bit_greyscale_keeps_its_values():
    depth = np.array([[0, 1, 1000], [40000, 65535, 7]], np.uint16)
    value = decode("depth.png", image_bytes(depth), LIMITS)
    assert value.dtype in (np.uint16, np.int32)
    assert np.array_equal(value, depth)


def test_exif_rotation_is_applied():
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:, :8] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    stored = Image.fromarray(np.rot90(upright).copy())  # turned a quarter counter-clockwise
    value = decode("jpg", encode(stored, "JPEG", quality=95, exif=exif.tobytes()), LIMITS)
    assert value.shape == (8, 16, 3)
    assert value[:, :6].min() > 240
    assert value[:, 10:].max() < 15


def test_transparency_becomes_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, :2] = (255, 0, 0, 255)
    value = decode("png", image_bytes(rgba), LIMITS)
    assert np.array_equal(value[0], [[255, 0, 0]] * 2 + [[255, 255, 255]] * 2)
    palette = Image.fromarray(rgba).convert("P", palette=Image.Palette.ADAPTIVE)
    palette = palette.copy()
    palette.info["transparency"] = palette.getpixel((3, 0))
    value = decode("png", encode(palette, "PNG", transparency=palette.getpixel((3, 0))), LIMITS)
    assert np.array_equal(value[0, 3], [255, 255, 255])


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "CMYK"])
def test_other_modes_become_rgb(mode):
    image = Image.new("RGB", (3, 2), "white").convert(mode)
    data = encode(image, "JPEG" if mode == "CMYK" else "PNG")
    value = decode("x.png", data, LIMITS)
    assert value.shape == (2, 3, 3)
    assert value.min() > 250


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(decode("webp", data, LIMITS)[0, 0], [255, 0, 0])


def test_a_single_pixel_is_a_picture():
    assert decode("png", image_bytes(PICTURE[:1, :1]), LIMITS).shape == (1, 1, 3)


def png_header_only(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = zlib.compress(bytes(height) * 8)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [20_000, 9_000])
def test_a_huge_picture_is_rejected_from_its_header(side):
    data = png_header_only(side, side)
    tracemalloc.start()
    assert reason("png", data) == "too_large"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


def test_limits_are_inclusive():
    data = image_bytes(PICTURE)
    decode("png", data, Limits(max_pixels=35, max_bytes=len(data)))
    assert reason("png", data, Limits(max_pixels=34)) == "too_large"
    assert reason("png", data, Limits(max_bytes=len(data) - 1)) == "too_large"


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="max_pixels must be at least 1, got 0"):
        Limits(max_pixels=0)


def test_damaged_pictures_are_corrupt():
    large = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    for fmt, extension in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        data = image_bytes(large, fmt)
        assert reason(extension, data[: len(data) // 2]) == "corrupt"
        assert reason(extension, b"") == "empty"
        assert reason(extension, b"no picture at all") == "corrupt"


def test_other_formats_are_rejected_whatever_their_name():
    targa = encode(Image.fromarray(PICTURE), "TGA")
    assert reason("png", targa) == "corrupt"
    assert reason("tga", targa) == "unsupported"


# Sounds


@pytest.mark.parametrize(("fmt", "tolerance"), [("WAV", 2e-4), ("FLAC", 2e-4), ("OGG", 0.1)])
def test_sounds_come_back_with_channels_and_rate(fmt, tolerance):
    time = np.arange(4000) / 8000
    stereo = 0.5 * np.stack([np.sin(880 * np.pi * time), np.cos(440 * np.pi * time)])
    value = decode(f"audio.{fmt.lower()}", audio_bytes(stereo, 8000, fmt), LIMITS)
    assert isinstance(value, Signal)
    assert value.rate == 8000
    assert value.samples.dtype == np.float32
    assert value.samples.shape == (2, 4000)
    assert np.abs(value.samples - stereo)[:, 500:3500].max() < tolerance


def test_bad_sounds():
    good = audio_bytes(np.zeros((2, 1000)), 8000)
    assert reason("wav", good, Limits(max_audio_values=1999)) == "too_large"
    decode("wav", good, Limits(max_audio_values=2000))
    assert reason("wav", audio_bytes(np.zeros((1, 0)), 8000)) == "empty"
    assert reason("ogg", b"OggS but nothing else") == "corrupt"
    assert reason("wav", audio_bytes(np.zeros((1, 100)), 8000, "AU")) == "unsupported"


# Arrays


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", ">f4", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back(dtype, order):
    array = np.asarray(np.arange(12).reshape(3, 4) % 5, dtype, order=order)
    value = decode("imu.npy", npy_bytes(array), LIMITS)
    assert value.dtype == array.dtype
    assert np.array_equal(value, array)


def test_object_arrays_are_never_unpickled(tmp_path):
    target = tmp_path / "executed"
    data = npy_bytes(np.array([Payload(target)], object), allow_pickle=True)
    assert reason("x.npy", data) == "unsupported"
    assert not target.exists()
    np.load(io.BytesIO(data), allow_pickle=True)
    assert target.exists()  # the payload does work


@pytest.mark.parametrize("extension", ["pkl", "pickle", "pyd", "pth", "pt", "npz", "exe", "mat"])
def test_pickles_and_the_like_have_no_decoder(tmp_path, extension):
    target = tmp_path / "executed"
    assert reason(f"x.{extension}", pickle.dumps(Payload(target))) == "unsupported"
    for allowed in ("npy", "json", "txt", "png", "wav"):
        with pytest.raises(DecodeError):
            decode(f"x.{allowed}", pickle.dumps(Payload(target)), LIMITS)
    assert not target.exists()


def npy_with_header(header: str) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }", "too_large"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", "corrupt"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }", "corrupt"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "unsupported"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "unsupported"),
        ("__import__('os').mkdir('executed')", "corrupt"),
    ],
)
def test_array_headers_are_checked(header, expected):
    assert reason("x.npy", npy_with_header(header)) == expected


# Texts


def test_texts():
    assert decode("caption.txt", " Ein Käse 🧀\n".encode(), LIMITS) == "Ein Käse 🧀"
    assert reason("txt", b" \n") == "empty"
    assert reason("txt", b"\xff\xfe") == "corrupt"
    assert reason("txt", b"x" * 11, Limits(max_text_bytes=10)) == "too_large"


def test_json():
    assert decode("json", b'{"name": "cat", "n": [1, 2.5]}', LIMITS) == {
        "name": "cat",
        "n": [1, 2.5],
    }
    assert reason("json", b"{") == "corrupt"
    assert reason("json", b"[" * 100_000) == "corrupt"
    assert reason("json", b'"xxxxxxxxxxx"', Limits(max_text_bytes=10)) == "too_large"


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "WAV", "FLAC", "OGG", "NPY"])
def test_random_damage_never_raises_anything_else(fmt):
    random = np.random.default_rng(3)
    if fmt == "NPY":
        data = npy_bytes(random.random((4, 50)))
    elif fmt in ("WAV", "FLAC", "OGG"):
        data = audio_bytes(random.uniform(-1, 1, (2, 500)), 16000, fmt)
    else:
        data = image_bytes(random.integers(0, 256, (16, 16, 3), np.uint8), fmt)
    small = Limits(max_pixels=1 << 16, max_audio_values=1 << 16, max_array_bytes=1 << 16)
    outcomes = set()
    for _ in range(100):
        damaged = bytearray(data)
        for place in random.integers(len(data), size=3):
            damaged[place] = random.integers(256)
        try:
            decode(f"x.{fmt.lower()}", bytes(damaged), small)
            outcomes.add("decoded")
        except DecodeError as error:
            outcomes.add(error.reason)
    assert outcomes <= {"decoded", "corrupt", "too_large", "unsupported", "empty"}
    assert outcomes - {"decoded"}
