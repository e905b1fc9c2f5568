"""What a user has in hand becomes what its file would have become."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import audio_bytes, npy_bytes
from PIL import Image
from search_helpers import make_embedder

from multimodal.data.decoding.decode import Limits, Signal, decode
from multimodal.data.errors import DecodeError
from multimodal.data.transforms.array import ArrayTransform
from multimodal.data.transforms.depth import DepthTransform
from multimodal.data.transforms.imu import IMUTransform
from multimodal.inference.given import Reader, listed


@pytest.fixture(scope="module")
def transforms(tmp_path_factory):
    return make_embedder(tmp_path_factory.mktemp("tokenizer")).transforms


def picture(mode: str) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 4), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_a_picture_is_as_its_file(tmp_path, transforms, mode):
    read, image = Reader("image", transforms["image"]), picture(mode)
    image.save(tmp_path / "a.png")
    from_file = read(0, tmp_path / "a.png")
    assert torch.equal(from_file, read(0, str(tmp_path / "a.png")))
    assert torch.equal(from_file, read(0, image))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes_are_converted(transforms, mode):
    read = Reader("image", transforms["image"])
    image = picture("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (9, 9))
    assert torch.equal(read(0, image), read(0, image.convert("RGB")))


def test_a_picture_is_turned_upright(transforms):
    read, image = Reader("image", transforms["image"]), picture("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    again = Image.open(file)
    assert torch.equal(
        read(0, again), read(0, decode("a.jpg", file.getvalue(), Limits()))
    )  # fmt: skip


@pytest.mark.parametrize("channels", [0, 3, 4])
def test_arrays_of_bytes_are_pictures(transforms, channels):
    read = Reader("image", transforms["image"])
    shape = (24, 30, channels) if channels else (24, 30)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = read(0, Image.fromarray(pixels))
    assert torch.equal(read(0, pixels), expected)
    assert torch.equal(read(0, torch.from_numpy(pixels)), expected)


def test_sounds_come_with_their_rate(tmp_path, transforms):
    read = Reader("audio", transforms["audio"])
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 9000)).astype(np.float32)
    (tmp_path / "a.wav").write_bytes(audio_bytes(wave, 16_000))
    from_file = read(0, tmp_path / "a.wav")
    stored = decode("a.wav", audio_bytes(wave, 16_000), Limits())
    for given in (
        stored, (stored.samples, 16_000), (stored.samples[0], 16_000.0),
        (torch.from_numpy(stored.samples), np.int64(16_000)),
    ):  # fmt: skip
        assert torch.equal(read(0, given), from_file)
    for wrong in (wave, (wave, 0), (wave, "16k"), ((wave * 999).astype(np.int16), 16_000), (1, 2)):
        with pytest.raises(DecodeError, match=r"audio\[3\]: "):
            read(3, wrong)


def test_texts_are_strings_and_files_are_paths(tmp_path, transforms):
    read = Reader("text", transforms["text"])
    (tmp_path / "a.txt").write_text("two dogs\n")
    assert torch.equal(read(0, tmp_path / "a.txt"), read(0, "two dogs"))
    assert len(read(0, str(tmp_path / "a.txt"))) != len(read(0, "two dogs"))  # words, not a file


def test_other_modalities_take_arrays_as_they_are(tmp_path):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    read = Reader("sensor", ArrayTransform([2, 3]))
    (tmp_path / "a.npy").write_bytes(npy_bytes(values))
    assert torch.equal(read(0, values), torch.arange(6.0).reshape(2, 3))
    assert torch.equal(read(0, tmp_path / "a.npy"), read(0, values))
    signal = np.random.default_rng(0).standard_normal((3, 50))
    imu = Reader("imu", IMUTransform(25, 20, [0.0] * 3, [1.0] * 3))
    assert torch.equal(imu(0, (signal, 25)), imu(0, Signal(signal.astype(np.float32), 25.0)))
    depth = Reader("depth", DepthTransform(16))
    metres = np.full((20, 20), 1500, np.uint16)
    assert torch.equal(depth(0, Image.fromarray(metres)), depth(0, metres))


def test_what_cannot_be_read_is_named(tmp_path, transforms):
    read = Reader("image", transforms["image"])
    (tmp_path / "notes.xyz").write_text("x")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nx")
    with pytest.raises(DecodeError, match=r"image\[7\] \(.*notes\.xyz\): no decoder"):
        read(7, tmp_path / "notes.xyz")
    with pytest.raises(DecodeError, match=r"corrupt: image\[0\] \(.*broken\.png\)"):
        read(0, str(tmp_path / "broken.png"))
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        read(0, tmp_path / "gone.png")
    for wrong in (None, 3, np.zeros((4, 4, 3)), np.zeros((3, 8, 8), np.uint8)):
        with pytest.raises(DecodeError, match=r"image\[1\]: expected a picture"):
            read(1, wrong)


def test_one_thing_is_a_list_of_one():
    image = picture("RGB")
    assert listed("a dog") == ["a dog"]
    assert listed(Path("a.jpg")) == [Path("a.jpg")]
    assert listed(image) == [image]
    assert listed(name for name in "ab") == ["a", "b"]
    assert len(listed(np.zeros((5, 2, 2, 3)))) == 5
