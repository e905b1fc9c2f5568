"""`index` and `verify`: they find what training would not read."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from data_helpers import audio_bytes, image_bytes, npy_bytes, shard_bytes, tar_bytes
from packing_helpers import jpeg, refused, run, wav

from multimodal.data.loading.evaluation_loader import EvaluationLoader
from multimodal.data.settings import EvaluationData, LoaderSettings
from multimodal.data.shards.manifest import load_manifest
from multimodal.data.source import Source
from multimodal.data.transforms.array import ArrayTransform
from multimodal.data.transforms.depth import DepthTransform
from multimodal.data.transforms.imu import IMUTransform
from multimodal.data.transforms.sound.audio import AudioTransform


def folder_of(tmp_path, members):
    folder = tmp_path / "tars"
    folder.mkdir()
    (folder / "a.tar").write_bytes(tar_bytes(members))
    return folder


@pytest.mark.parametrize(
    "members",
    [
        [("235341 Track 2.1 (Clean Version).wav", wav(1)), ("a.wav", wav(2))],
        [("a.wav", wav(2))]
        + [(f"holiday 2024.01.{n:02d}.{e}", jpeg(n)) for n in range(12) for e in ("jpg",)],
        [("a.wav", wav(2)), ("IMG.3 copy.jpg", jpeg(1)), ("IMG.4 copy.jpg", jpeg(1))],
    ],
)
def test_names_of_members_that_make_no_sense_are_found(tmp_path, capsys, members):
    folder = folder_of(tmp_path, members)
    assert run("index", folder) == 0
    said = capsys.readouterr().err
    assert "member_name: its names make no sense: '" in said
    assert set(load_manifest(folder / "tars.json").fields) == {"wav"}
    assert run("verify", folder) == 1
    captured = capsys.readouterr()
    assert "make no sense" in captured.err
    assert "1 samples in order" in captured.out
    # packed again they are right
    assert run(folder, tmp_path / "out") == 0
    assert run("verify", tmp_path / "out") == 0


def test_tars_of_such_names_alone_are_refused(tmp_path, capsys):
    folder = folder_of(tmp_path, [(f"day 2024.01.{n:02d}.jpg", jpeg(n)) for n in range(3)])
    assert run("index", folder) == 1
    assert "make no sense" in capsys.readouterr().err


def test_numbered_members_of_many_samples_make_sense(tmp_path):
    members = [(f"k{n}.{i}.jpg", jpeg(n)) for n in range(3) for i in range(2)]
    folder = folder_of(tmp_path, members)
    assert run("index", folder) == 0
    assert run("verify", folder) == 0


@pytest.mark.parametrize("value", [None, "", "  ", float("nan"), 7, [], ["a", 3]])
def test_one_caption_that_is_none_does_not_take_the_key_away(tmp_path, capsys, value):
    captions = [f"dog {n}" for n in range(11)] + [value]
    made = [
        (f"k{n:02d}", {"jpg": jpeg(n), "json": json.dumps({"caption": caption}).encode()})
        for n, caption in enumerate(captions)
    ]
    folder = folder_of(tmp_path, [])
    (folder / "a.tar").write_bytes(shard_bytes(made))
    assert run("index", folder) == 0
    said = capsys.readouterr().err
    assert "key 'k11': no_text: 'caption' " in said
    path = folder / "tars.json"
    assert load_manifest(path).field("json", "train").keys == ("caption",)
    source = Source(str(path), {"text": {"member": "json", "key": "caption"}})
    assert source.decode(3, None).values == {"text": "dog 3"}
    assert run("verify", folder) == 1
    captured = capsys.readouterr()
    assert "key 'k11': no_text" in captured.err
    assert "11 samples in order, 1 problems" in captured.out
    # packed, that sample is left out
    assert run(folder, tmp_path / "out") == 0
    assert refused(tmp_path / "out") == {"k11": "no_text"}
    assert run("verify", tmp_path / "out") == 0


def test_a_key_that_some_samples_lack_is_said(tmp_path, capsys):
    made = [
        (f"k{n}", {"jpg": jpeg(n), "json": b'{"title": "a"}' if n else b'{"x": 1}'})
        for n in range(4)
    ]
    folder = folder_of(tmp_path, [])
    (folder / "a.tar").write_bytes(shard_bytes(made))
    assert run("index", folder) == 0
    assert "1 of 4 samples have no 'title' in json" in capsys.readouterr().err
    field = load_manifest(folder / "tars.json").field("json", "train")
    assert field.partial == {"title": 3, "x": 1}
    assert run("verify", folder) == 0


def nan_wav():
    samples = np.zeros((1, 400), np.float32)
    samples[0, 7] = np.nan
    return audio_bytes(samples, 16000, subtype="FLOAT")


def flac():
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 40_000))
    return audio_bytes(noise, 16000, "FLAC")


RATE = b'{"rate_hz": 50}'
NAN = npy_bytes(np.array([[1.0, np.nan]]))
GREY = image_bytes(np.zeros((8, 8), np.uint8))
FINE = {
    "wav": wav(1),
    "flac": flac(),
    "depth.png": image_bytes(np.full((8, 8), 900, np.uint16)),
    "a.npy": npy_bytes(np.ones((2, 1))),
    "imu.npy": npy_bytes(np.ones((1, 9))),
}
TRANSFORMS = {
    "wav": AudioTransform(num_frames=20),
    "flac": AudioTransform(num_frames=20),
    "depth.png": DepthTransform(size=4),
    "a.npy": ArrayTransform(shape=[2, 1]),
    "imu.npy": IMUTransform(length=4, rate_hz=50, mean=[0.0], std=[1.0]),
}
FAULTY = {
    "wav cut": ("wav", wav(1)[:500], "corrupt"),
    "wav cut to its header": ("wav", wav(1)[:44], "corrupt"),
    "wav with NaN": ("wav", nan_wav(), "not_finite"),
    "wav of a strange rate": ("wav", audio_bytes(np.zeros((1, 9)), 100), "unsupported"),
    "flac cut": ("flac", flac()[:20_000], "corrupt"),
    "three-channel depth": ("depth.png", jpeg(1), "unsupported"),
    "array with NaN": ("a.npy", NAN, "not_finite"),
    "motion without a rate": ("imu.npy", FINE["imu.npy"], "metadata"),
    "motion with NaN": ("imu.npy", NAN, "not_finite"),
    "motion of one axis": ("imu.npy", npy_bytes(np.ones(9)), "shape"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_verify_refuses_what_training_refuses(tmp_path, capsys, name):
    member, data, reason = FAULTY[name]
    good, bad = {member: FINE[member], "json": RATE}, {member: data, "json": RATE}
    if "without a rate" in name:
        bad["json"] = b'{"rate_hz": null}'
    folder = folder_of(tmp_path, [])
    (folder / "a.tar").write_bytes(shard_bytes([("good", good), ("bad", bad)]))
    assert run("index", folder) == 0
    assert run("verify", folder) == 1
    captured = capsys.readouterr()
    assert f"key 'bad': {reason}: " in captured.err
    assert "1 samples in order, 1 problems" in captured.out
    assert run(folder, tmp_path / "out") == 0
    assert refused(tmp_path / "out") == {"bad": reason}
    source = Source(str(folder / "tars.json"), {"m": {"member": member}})
    data = EvaluationData({"m": TRANSFORMS[member]}, loading=LoaderSettings(max_bad_fraction=1.0))
    assert [key for batch in EvaluationLoader(source, data) for key in batch.keys] == ["good"]


def test_a_wav_of_unknown_length_is_whole(tmp_path):
    data = bytearray(wav(1))
    place = data.index(b"data") + 4
    data[place : place + 4] = b"\xff\xff\xff\xff"
    folder = folder_of(tmp_path, [("a.wav", bytes(data))])
    assert run("index", folder) == 0
    assert run("verify", folder) == 0


def test_texts_with_a_mark_are_read_without_it(tmp_path):
    folder = folder_of(tmp_path, [("a.txt", "a dog".encode("utf-8-sig"))])
    assert run("index", folder) == 0
    source = Source(str(folder / "tars.json"), {"text": {"member": "txt"}})
    assert source.decode(0, None).values == {"text": "a dog"}


def test_compressed_tars_are_named(tmp_path, capsys):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/a.tar.gz").write_bytes(b"x")
    assert run("index", tmp_path / "tars") == 1
    assert "unpack a.tar.gz first" in capsys.readouterr().err


@pytest.mark.parametrize("captions", [["dog", "cat", "dog", "a red dog"] * 2, ["dog"] * 9])
def test_captions_of_one_word_are_counted(tmp_path, captions):
    buffer = io.StringIO()
    for n, caption in enumerate(captions):
        buffer.write(json.dumps({"id": f"x{n}", "caption": caption}) + "\n")
    (tmp_path / "t.jsonl").write_text(buffer.getvalue())
    assert run(tmp_path / "t.jsonl", tmp_path / "out") == 0
    texts = json.loads((tmp_path / "out/report.json").read_text())["quality"]["texts"]
    assert texts["count"] == len(captions)
    assert texts["repeated"] == len(captions) - len(set(captions))
