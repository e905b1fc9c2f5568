"""DICOM, TIFF, MP3 and M4A, from a folder of files to two steps of training."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from data_helpers import audio_bytes, dicom_bytes, m4a_bytes
from experiment_helpers import train_here
from PIL import Image

from multimodal.cli.make_shards import main
from multimodal.data.source import Source

pytest.importorskip("pydicom")
pytest.importorskip("av")


def tiff(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", compression="tiff_lzw")
    return buffer.getvalue()


def test_new_formats_are_packed_verified_and_trained_on(tmp_path, monkeypatch, capsys):
    random, files = np.random.default_rng(0), tmp_path / "files"
    files.mkdir()
    for number in range(16):
        key = files / f"case{number:02d}"
        sound = 0.3 * np.sin(np.arange(24_000) * (0.05 + number / 100))[None]
        slope = {"RescaleSlope": 1, "RescaleIntercept": -1024}
        slope |= {"PatientName": "Doe^Jane", "BodyPartExamined": "HEAD"}
        scan = random.integers(0, 2000, (24, 24)).astype(np.uint16)
        key.with_suffix(".dcm").write_bytes(dicom_bytes(scan, **slope))
        slide = random.integers(0, 65536, (24, 24)).astype(np.uint16)
        key.with_suffix(".tif").write_bytes(tiff(slide))
        voice = audio_bytes(sound, 16_000, "MP3") if number % 2 else m4a_bytes(sound, 16_000)
        key.with_suffix(".mp3" if number % 2 else ".m4a").write_bytes(voice)
    shards = tmp_path / "clinic"
    words = [str(files), str(shards), "--name", "clinic", "--require", "dcm", "tif"]
    assert main([*words, "--dicom-header", "BodyPartExamined", "Rows"]) == 0
    source = Source(str(shards / "clinic.json"), {"scan": {"member": "dcm"}})
    assert source.decode(0, None).metadata == {"body_part_examined": "HEAD", "rows": 24}
    assert main(["verify", str(shards)]) == 0
    for path in shards.iterdir():
        assert path.suffix == ".tar" or not path.is_file() or b"Doe" not in path.read_bytes()
    monkeypatch.setenv("CLINIC_SHARDS", str(shards))
    train_here(tmp_path / "run", experiment="clinic")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
