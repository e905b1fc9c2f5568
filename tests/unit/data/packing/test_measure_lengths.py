"""Lengths beside a manifest: as the samples decode, of the shards that it names."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from data_helpers import audio_bytes, image_bytes, json_bytes, npy_bytes, write_source
from PIL import Image

from multimodal.cli.make_shards import main
from multimodal.cli.packing.lengths import record_lengths
from multimodal.data.decoding.decode import Limits, decode
from multimodal.data.decoding.pictures import picture_size
from multimodal.data.shards.curation import curate
from multimodal.data.shards.lengths import read_lengths
from multimodal.data.shards.manifest import load_manifest


def picture(height: int, width: int, fmt: str = "JPEG", orientation: int | None = None) -> bytes:
    image, file = Image.new("RGB", (width, height)), io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(file, fmt, exif=exif)
    return file.getvalue()


def sample(number: int) -> tuple[str, dict[str, bytes]]:
    members = {
        "jpg": picture(10 + number, 30, orientation=6 if number % 2 else None),
        "b.png": image_bytes(np.zeros((4, 5 + number, 3), np.uint8)),
        "txt": b" four " + b"x" * number,
        "depth.npy": npy_bytes(np.zeros((3, 4 + number), np.uint16)),
        "d.png": image_bytes(np.full((6, 7 + number), 900, np.uint16)),
        "vector.npy": npy_bytes(np.zeros(5, np.float32)),
        "wav": audio_bytes(np.zeros((1, 8001 + number)), 8000),
        "json": json_bytes(captions=["a", "a b c"], name="n" * (number + 1), width=3),
    }
    if number == 2:
        del members["b.png"]
    if number == 3:
        members["jpg"] = b"\xff\xd8\xff no picture"
    return f"k{number}", members


@pytest.fixture
def manifest(tmp_path):
    samples = [sample(number) for number in range(6)]
    return write_source(tmp_path, {"train": [samples[:2], samples[2:5]], "val": [samples[5:]]})


def test_columns_are_those_of_the_samples(manifest):
    record_lengths(manifest)
    loaded = load_manifest(manifest)

    def column(name, *splits):
        return read_lengths(loaded, splits or ["train"], name).tolist()

    assert column("jpg") == [[10, 30], [30, 11], [12, 30], [0, 0], [14, 30]]
    assert column("b.png") == [[4, 5], [4, 6], [0, 0], [4, 8], [4, 9]]
    assert column("txt") == [4, 6, 7, 8, 9]
    assert column("depth.npy", "val") == [[3, 9]]
    assert column("d.png") == [[6, 7 + number] for number in range(5)]
    assert column("wav") == [1001] * 5  # milliseconds, rounded up
    with pytest.raises(ValueError, match=r"no lengths of 'vector\.npy'"):
        column("vector.npy")
    assert column("json:captions") == [5] * 5
    assert column("json:name", "train", "val") == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match=r"no lengths of 'json:width', only of .*jpg"):
        column("json:width")


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("orientation", [None, 3, 6])
def test_sizes_from_headers_are_those_of_the_decoded(fmt, orientation):
    if fmt in ("GIF", "BMP") and orientation:
        pytest.skip("without EXIF")
    data = picture(7, 9, fmt, orientation)
    value = decode("a.png", data, Limits())
    assert picture_size(data, Limits()) == value.shape[:2]


def test_samples_that_are_left_out_have_no_lengths(manifest, tmp_path):
    curated = tmp_path / "less.json"
    curate(manifest, curated, {"bad": ["k1", "k2"]})
    record_lengths(curated)
    assert read_lengths(load_manifest(curated), ["train"], "txt").tolist() == [4, 8, 9]


def test_missing_and_stale_lengths_name_the_command(manifest, capsys):
    command = f"multimodal shards lengths {manifest}"
    with pytest.raises(ValueError, match=r"lengths\.json is missing") as caught:
        read_lengths(load_manifest(manifest), ["train"], "jpg")
    assert command in str(caught.value)
    assert main(["lengths", str(manifest)]) == 0
    assert capsys.readouterr().out.strip().endswith("made.lengths")
    read_lengths(load_manifest(manifest), ["train"], "jpg")
    content = json.loads(manifest.read_text())
    content["shards"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not of the shards of split 'train'") as caught:
        read_lengths(load_manifest(manifest), ["train"], "jpg")
    assert command in str(caught.value)
