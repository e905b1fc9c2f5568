"""HEIC, DICOM, TIFF of bands and slices, and point clouds, whose packages are extras."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
from data_helpers import dicom_bytes, npy_bytes
from PIL import Image

from multimodal.data.decoding.decode import Limits, decode
from multimodal.data.decoding.dicom import header_values
from multimodal.data.errors import DecodeError

pydicom = pytest.importorskip("pydicom")
tifffile = pytest.importorskip("tifffile")
pillow_heif = pytest.importorskip("pillow_heif")
LIMITS = Limits()
RANDOM = np.random.default_rng(0)


def reason(member: str, data: bytes, limits: Limits = LIMITS, kind: str | None = None) -> str:
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError) as caught:
            decode(member, data, limits, kind=kind)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000
    return caught.value.reason


def outcomes(member: str, data: bytes, kind: str | None = None) -> set[str]:
    random = np.random.default_rng(3)
    small = Limits(max_pixels=1 << 16, max_array_bytes=1 << 20, max_bytes=1 << 20)
    found = set()
    for _ in range(60):
        damaged = bytearray(data)
        for place in random.integers(min(len(data), 3000), size=3):
            damaged[place] = random.integers(256)
        try:
            decode(member, bytes(damaged), small, kind=kind)
        except DecodeError as error:
            found.add(error.reason)
    return found


REASONS = {"corrupt", "too_large", "unsupported", "empty", "not_finite"}


# HEIC


def heic(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(buffer, **options)
    return buffer.getvalue()


COARSE = Image.fromarray(RANDOM.integers(0, 256, (6, 8, 3), np.uint8))
PHOTO = np.asarray(COARSE.resize((128, 96), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("member", ["heic", "photo.HEIF", "sent_by_a_phone.jpg"])
def test_heic(member):
    data = heic(PHOTO, quality=95)
    value = decode(member, data, LIMITS)
    assert value.dtype == np.uint8
    assert np.abs(value.astype(int) - PHOTO).mean() < 4
    assert reason(member, data, Limits(max_pixels=128 * 96 - 1)) == "too_large"
    place = data.index(b"ispe") + 8
    bomb = data[:place] + struct.pack(">II", 16_000, 16_000) + data[place + 8 :]
    assert reason(member, bomb) == "too_large"
    assert reason(member, data[: len(data) // 2]) == "corrupt"
    assert outcomes(member, data) <= REASONS


def test_a_turned_heic_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.rot90(PHOTO).copy())
    buffer = io.BytesIO()
    pillow_heif.register_heif_opener()
    turned.save(buffer, "HEIF", exif=exif.tobytes(), quality=95)
    assert b"irot" in buffer.getvalue()
    assert np.abs(decode("heic", buffer.getvalue(), LIMITS).astype(int) - PHOTO).mean() < 4


# DICOM


def test_ct_in_hounsfield_units_and_in_its_window():
    stored = np.array([[0, 500, 1000], [1024, 1064, 2000]], np.uint16)
    rescale = {"RescaleSlope": 1.0, "RescaleIntercept": -1024.0}
    window = {"WindowCenter": [40, -600], "WindowWidth": [400, 1500]}
    data = dicom_bytes(stored, **rescale, **window)
    units = decode("ct.dcm", data, LIMITS, kind="array")
    assert units.dtype == np.float32
    assert np.array_equal(units, stored.astype(np.float32) - 1024)
    shown = decode("ct.dcm", data, LIMITS)
    assert shown.dtype == np.uint16
    # PS3.3 C.11.2.1.2.1: LINEAR
    expected = np.clip((units - 39.5) / 399 + 0.5, 0, 1) * 65535
    assert np.abs(shown - expected).max() <= 1
    exact = decode("dcm", dicom_bytes(stored, **rescale, **window, VOILUTFunction="LINEAR_EXACT"),
                   LIMITS)  # fmt: skip
    assert np.abs(exact - np.clip((units - 40) / 400 + 0.5, 0, 1) * 65535).max() <= 1
    whole = decode("dcm", dicom_bytes(stored, **rescale), LIMITS)
    assert np.abs(whole - stored / 2000 * 65535).max() <= 1
    inverse = dicom_bytes(stored, **rescale, PhotometricInterpretation="MONOCHROME1")
    assert np.abs(decode("dcm", inverse, LIMITS) - (65535 - whole)).max() <= 1


def test_signed_values_padding_and_look_up_tables():
    stored = np.array([[-2000, -5, 0], [5, 7, 10]], np.int16)
    shown = decode("dcm", dicom_bytes(stored, PixelPaddingValue=-2000), LIMITS)
    assert np.abs(shown - np.clip((stored + 5) / 15, 0, 1) * 65535).max() <= 1
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 8], [0, 10, 200, 255]
    table["LUTData"].VR = "US"
    data = dicom_bytes(np.array([[0, 1, 2, 3, 9]], np.uint16), VOILUTSequence=[table])
    assert np.abs(decode("dcm", data, LIMITS) / 257 - [0, 10, 200, 255, 255]).max() < 0.1


def test_frames_colours_and_compressions():
    volume = RANDOM.integers(0, 4096, (3, 64, 96)).astype(np.uint16)
    data = dicom_bytes(volume)
    assert np.array_equal(decode("dcm", data, LIMITS, kind="array"), volume)
    assert decode("dcm", data, LIMITS).shape == (64, 96)
    assert decode("dicom", dicom_bytes(PHOTO), LIMITS).shape == PHOTO.shape
    assert np.array_equal(decode("dcm", dicom_bytes(PHOTO), LIMITS), PHOTO)
    plain = decode("dcm", dicom_bytes(volume[0]), LIMITS, kind="array")
    for uid in (pydicom.uid.JPEG2000Lossless, pydicom.uid.JPEGLSLossless, pydicom.uid.RLELossless):
        data = dicom_bytes(volume[0], compressed=uid)
        assert np.array_equal(decode("dcm", data, LIMITS, kind="array"), plain)


def test_the_patient_stays_in_the_header_unless_named():
    data = dicom_bytes(np.ones((4, 4), np.uint16), PatientName="Doe^Jane", BodyPartExamined="HEAD")
    assert isinstance(decode("dcm", data, LIMITS), np.ndarray)
    assert header_values(data, ["Modality", "BodyPartExamined", "Rows", "StudyDate"]) == {
        "Modality": "CT", "BodyPartExamined": "HEAD", "Rows": 4,
    }  # fmt: skip
    with pytest.raises(ValueError, match="'BodyPart' is not a DICOM keyword"):
        header_values(data, ["BodyPart"])


def test_dicom_bombs_and_damage():
    small = np.ones((64, 64), np.uint16)
    good = dicom_bytes(small)
    rows = good.index(struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 64)) + 8
    huge = good[:rows] + struct.pack("<H", 60_000) + good[rows + 2 :]
    columns = huge.index(struct.pack("<HH2sHH", 0x28, 0x11, b"US", 2, 64)) + 8
    assert reason("dcm", huge[:columns] + struct.pack("<H", 60_000) + huge[columns + 2 :]) == (
        "too_large"
    )
    assert reason("dcm", good, Limits(max_array_bytes=4 * 64 * 64 - 1), kind="array") == "too_large"
    inside = dicom_bytes(small, compressed=pydicom.uid.JPEG2000Lossless)
    place = inside.index(b"\xff\x4f\xff\x51") + 8
    lying = inside[:place] + struct.pack(">II", 30_000, 30_000) + inside[place + 8 :]
    assert reason("dcm", lying) == "too_large"
    assert reason("dcm", dicom_bytes(small, deflated=9_000_000), Limits(max_bytes=1_000_000)) == (
        "too_large"
    )
    assert reason("dcm", b"no DICOM") == "corrupt"
    assert reason("dcm", good[:-100]) == "corrupt"
    assert outcomes("dcm", good) <= REASONS
    assert outcomes("dcm", inside, "array") <= REASONS


# TIFF


def tiff(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_bands_and_slices(compression, byteorder):
    options = {"compression": compression, "byteorder": byteorder, "photometric": "minisblack"}
    bands = RANDOM.integers(0, 10_000, (13, 20, 24)).astype(np.uint16)
    for planar, given in (("separate", bands), ("contig", bands.transpose(1, 2, 0))):
        data = tiff(given, planarconfig=planar, **options)
        value = decode("tif", data, LIMITS, kind="array")
        assert value.dtype == np.dtype("uint16")
        assert np.array_equal(value, bands)
        assert reason("tif", data) == "unsupported"  # as a picture
    volume = RANDOM.random((7, 20, 24), np.float32)
    data = tiff(volume, **options)
    assert np.array_equal(decode("tiff", data, LIMITS, kind="array"), volume)
    assert reason("tif", data) == "unsupported"
    assert reason("tiff", data, Limits(max_array_bytes=volume.nbytes - 1), "array") == "too_large"


def test_a_picture_as_numbers():
    assert np.array_equal(decode("tif", tiff(PHOTO), LIMITS), PHOTO)
    wide = RANDOM.random((9, 11))  # of 64 bits, which Pillow does not read
    assert np.array_equal(decode("tif", tiff(wide), LIMITS), wide.astype(np.float32))
    for data in (tiff(PHOTO), heic_free_png()):
        value = decode("tif" if data[:2] == b"II" else "png", data, LIMITS, kind="array")
        assert np.array_equal(value, PHOTO.transpose(2, 0, 1))


def test_numbers_that_pillow_does_not_know_are_pictures():
    wide = np.array([[0, 1 << 31], [1 << 30, (1 << 32) - 1]], np.uint32).repeat(8, 0).repeat(8, 1)
    value = decode("tif", tiff(wide, compression="deflate"), LIMITS)
    assert np.array_equal(value, wide.astype(np.float32))
    for factor in (1, 4000):
        floats = (RANDOM.random((16, 24, 3), np.float32) * factor).astype(np.float32)
        floats[0, 0] = [0, factor, 0]
        value = decode("tif", tiff(floats, photometric="rgb"), LIMITS)
        assert value.dtype == np.uint8
        assert np.abs(value - floats / factor * 255).max() <= 0.51


def heic_free_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "PNG")
    return buffer.getvalue()


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    place = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
    return data[:place] + struct.pack("<I", value) + data[place + 4 :]


def test_tiff_bombs_and_damage():
    good = tiff(np.zeros((5, 16, 16), np.uint16), photometric="minisblack", compression="deflate")
    bomb = with_tag(with_tag(good, 256, 65_535), 257, 65_535)
    assert reason("tif", bomb, kind="array") == "too_large"
    # A strip that inflates to more than its page.
    inflating = tiff(np.zeros((1, 4000, 4000), np.uint16), compression="deflate", rowsperstrip=4000)
    short = with_tag(inflating, 257, 4)
    assert reason("tif", short, Limits(max_array_bytes=100_000), "array") in REASONS
    assert outcomes("tif", good, "array") <= REASONS


# Point clouds


def ply(order: str, points: np.ndarray, kind: str = "float") -> bytes:
    names = ("x", "y", "z", "red")[: points.shape[1]]
    header = [
        "ply", f"format {order} 1.0", "comment made in a test", f"element vertex {len(points)}",
        *(f"property {kind} {name}" for name in names),
        "element face 1", "property list uchar int vertex_indices", "end_header\n",
    ]  # fmt: skip
    if order == "ascii":
        body = "\n".join(" ".join(map(str, row)) for row in points.tolist()) + "\n3 0 1 2\n"
        return "\n".join(header).encode() + body.encode()
    dtype = {"float": "f4", "double": "f8", "uchar": "u1"}[kind]
    body = points.astype((">" if "big" in order else "<") + dtype).tobytes()
    return "\n".join(header).encode() + body + b"\x03" + bytes(12)


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_points(order):
    points = RANDOM.normal(size=(50, 4)).astype(np.float32)
    value = decode("scan.ply", ply(order, points), LIMITS)
    assert value.dtype == np.float32
    assert np.array_equal(value, points)
    assert np.array_equal(decode("npy", npy_bytes(points), LIMITS), points)
    wide = points.astype(np.float64) + 5_000_000.123456
    assert np.array_equal(decode("ply", ply(order, wide, "double"), LIMITS), wide)
    assert reason("ply", ply(order, points), Limits(max_array_bytes=799)) == "too_large"
    assert reason("ply", ply(order, points)[:-300]) == "corrupt"
    bomb = ply(order, points).replace(b"vertex 50", b"vertex 50000000000")
    assert reason("ply", bomb) == "too_large"
    assert reason("ply", ply(order, points).replace(b"vertex 50", b"vertex 5000000")) == "corrupt"
    assert reason("ply", ply(order, points[:0])) == "empty"
    assert reason("ply", b"plywood") == "corrupt"
    assert outcomes("ply", ply(order, points)) <= REASONS


def test_points_that_are_not_finite():
    points = np.array([[0, 1, np.nan]], np.float32)
    assert reason("ply", ply("binary_little_endian", points)) == "not_finite"
