"""Parquet, Arrow, JSON lines and folders of `datasets`: files inside, lists, classes, no values."""

from __future__ import annotations

import datetime
import io
import json

import numpy as np
import pytest
from packing_helpers import jpeg, metadata, photos, refused, run, samples, wav

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import ipc, parquet  # noqa: E402

FEATURES = {
    "info": {
        "features": {
            "image": {"_type": "Image"},
            "label": {"_type": "ClassLabel", "names": ["cat", "big dog"]},
            "text": {"_type": "Value", "dtype": "string"},
        }
    }
}


def table(count=5, path="{}.jpg", start=0):
    numbers = range(start, start + count)
    columns = {
        "image": [{"bytes": jpeg(n), "path": path and path.format(n)} for n in numbers],
        "label": [n % 2 for n in numbers],
        "text": [f"a dog {n}" for n in numbers],
    }
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema(
        [("image", kind), ("label", pyarrow.int64()), ("text", pyarrow.string())],
        {b"huggingface": json.dumps(FEATURES).encode()},
    )
    return pyarrow.table(columns, schema=schema)


def write_arrow(content, path, stream=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    make = ipc.new_stream if stream else ipc.new_file
    with pyarrow.OSFile(str(path), "wb") as sink, make(sink, content.schema) as writer:
        writer.write_table(content, max_chunksize=2)


@pytest.mark.parametrize("path", ["{}.jpg", None, "no extension"])
@pytest.mark.parametrize("kind", ["parquet", "arrow stream", "arrow file"])
def test_files_inside_of_a_table_are_packed(tmp_path, path, kind, capsys):
    file = tmp_path / ("t.parquet" if kind == "parquet" else "t.arrow")
    if kind == "parquet":
        parquet.write_table(table(path=path), file, row_group_size=2)
    else:
        write_arrow(table(path=path), file, stream=kind == "arrow stream")
    assert run(file, tmp_path / "out") == 0
    found = samples(tmp_path / "out")
    assert {members["image.jpg"] for members in found.values()} == {jpeg(n) for n in range(5)}
    assert metadata(tmp_path / "out")["000000003"] == {"label": "big dog", "text": "a dog 3"}
    assert "files: image; texts: text" in capsys.readouterr().err
    assert run("verify", tmp_path / "out") == 0


def test_a_table_of_many_row_groups_gives_the_same_shards(tmp_path):
    for name, size in (("many", 1), ("one", 100)):
        parquet.write_table(table(12), tmp_path / "t.parquet", row_group_size=size)
        words = ("--name", "x", "--max-samples", 5)
        assert run(tmp_path / "t.parquet", tmp_path / name, *words) == 0
    assert samples(tmp_path / "many") == samples(tmp_path / "one")
    tars = [sorted((tmp_path / name).glob("*.tar")) for name in ("many", "one")]
    assert [p.read_bytes() for p in tars[0]] == [p.read_bytes() for p in tars[1]]
    assert len(tars[0]) == 3


def test_bytes_alone_and_lists_of_files(tmp_path):
    columns = {
        "sound": pyarrow.array([wav(n) for n in range(3)], pyarrow.binary()),
        "hash": pyarrow.array([b"\x01\x02"] * 3, pyarrow.binary()),
        "views": [[{"bytes": jpeg(n), "path": "a.jpg"}, {"bytes": jpeg(n + 9), "path": "b.jpg"}]
                  for n in range(3)],
        "caption": ["a", "b", "c"],
    }  # fmt: skip
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    assert run(tmp_path / "t.parquet", tmp_path / "out") == 0
    found = samples(tmp_path / "out")["train:000000001"]
    assert sorted(found) == ["json", "sound.wav", "views_0.jpg", "views_1.jpg"]
    assert found["views_1.jpg"] == jpeg(10)


def test_files_with_more_beside_their_bytes(tmp_path):
    """As other writers of Parquet describe sounds and pictures."""
    file = tmp_path / "t.parquet"
    sounds = [{"bytes": wav(n), "path": None, "sampling_rate": 16000} for n in range(3)]
    images = [{"bytes": jpeg(n), "height": 48, "width": 48, "mode": "RGB"} for n in range(3)]
    content = {"audio": sounds, "image": images, "text": ["a b", "c d", "e f"]}
    parquet.write_table(pyarrow.table(content), file)
    assert run(file, tmp_path / "out") == 0
    packed = samples(tmp_path / "out")
    assert {members["audio.wav"] for members in packed.values()} == {wav(n) for n in range(3)}
    assert {members["image.jpg"] for members in packed.values()} == {jpeg(n) for n in range(3)}


def test_lists_nested_values_dates_and_numbers(tmp_path):
    rows = [
        {
            "file": f"{n}.jpg",
            "captions": [f"one {n}", " ", None, f"two {n}"],
            "box": {"x": n, "tags": ["a", None]},
            "score": float("nan") if n == 1 else n / 2,
            "day": datetime.date(2024, 1, 5),
            "sensor": np.arange(60.0).reshape(3, 20).tolist(),
        }
        for n in range(3)
    ]
    photos(tmp_path, 3)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert run(tmp_path / "t.parquet", tmp_path / "out") == 0
    found = metadata(tmp_path / "out")
    assert found["000000000"] == {
        "captions": ["one 0", "two 0"],
        "box": {"x": 0, "tags": ["a", None]},
        "score": 0.0,
        "day": "2024-01-05",
    }
    assert "score" not in found["000000001"]
    array = np.load(io.BytesIO(samples(tmp_path / "out")["train:000000002"]["sensor.npy"]))
    assert array.shape == (3, 20)
    assert array.dtype == np.float32


def test_a_folder_that_datasets_has_saved(tmp_path):
    for split, count in (("train", 4), ("validation", 2)):
        folder = tmp_path / "in" / split
        names = []
        for number in range(2):
            name = f"data-{number:05d}-of-00002.arrow"
            write_arrow(table(count // 2, start=number * 10), folder / name)
            names.append({"filename": name})
        (folder / "state.json").write_text(json.dumps({"_data_files": names}))
        (folder / "dataset_info.json").write_text("{}")
    one = tmp_path / "in/train"
    assert run(one, tmp_path / "one") == 0
    assert len(samples(tmp_path / "one")) == 4
    splits = json.dumps({"splits": ["train", "validation"]})
    (tmp_path / "in/dataset_dict.json").write_text(splits)
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert sorted(key.split(":")[0] for key in samples(tmp_path / "out")) == [
        *["train"] * 4, "val", "val"]  # fmt: skip
    (one / "data-00001-of-00002.arrow").unlink()
    assert run(tmp_path / "in", tmp_path / "broken") == 1


def test_a_folder_of_parquet_files_as_the_hub_has_it(tmp_path):
    (tmp_path / "in/data").mkdir(parents=True)
    for number in range(2):
        name = f"train-{number:05d}-of-00002.parquet"
        parquet.write_table(table(3, start=3 * number), tmp_path / "in/data" / name)
    parquet.write_table(table(2), tmp_path / "in/data/test-00000-of-00001.parquet")
    (tmp_path / "in/README.md").write_text("# A set")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    found = samples(tmp_path / "out")
    assert sorted(key.split(":")[0] for key in found) == ["test"] * 2 + ["train"] * 6
    assert refused(tmp_path / "out") == {"README.md": "beside"}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json"])
@pytest.mark.parametrize("words", [(), ("--texts", "title", "--files", "file")])
def test_samples_without_a_caption_are_left_out_by_name(tmp_path, capsys, kind, words):
    photos(tmp_path, 12)
    rows = [{"file": f"{n}.jpg", "title": f"dog {n}" if n else None} for n in range(12)]
    rows[1]["title"] = "  "
    rows[2]["title"] = "NA"
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    else:
        rows[3]["title"] = float("nan")
        rows[4]["title"] = 7
        rows[5]["title"] = ["a dog", None]
        rows[6]["title"] = []
        lines = [json.dumps(row) for row in rows]
        text = "\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]"
        (tmp_path / f"t.{kind}").write_text(text)
    assert run(tmp_path / f"t.{kind}", tmp_path / "out", *words) == 0
    bad = [0, 1] if kind == "parquet" else [0, 1, 3, 4, 6]
    assert refused(tmp_path / "out") == {f"{n:09d}": "no_text" for n in bad}
    found = metadata(tmp_path / "out")
    assert found["000000002"] == {"title": "NA"}
    said = capsys.readouterr().err
    assert f"left out: {len(bad)} no_text" in said
    assert "'title' is null" in said
    assert run("verify", tmp_path / "out") == 0
    # ... or are kept without it, which is counted
    optional = ("--optional", "title", "--files", "file")
    assert run(tmp_path / f"t.{kind}", tmp_path / "all", *optional) == 0
    assert len(samples(tmp_path / "all")) == 12
    nothing = len(bad) - (kind != "parquet")  # a number is something
    assert f"{nothing} of 12 samples have no 'title' in their json" in capsys.readouterr().err


def test_numbers_as_captions_are_one_line(tmp_path, capsys):
    photos(tmp_path, 3)
    rows = [{"file": f"{n}.jpg", "caption": n, "label": n} for n in range(3)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(tmp_path / "t.jsonl", tmp_path / "out", "--texts", "caption") == 1
    said = capsys.readouterr().err
    assert "t.jsonl: the column 'caption' holds numbers (0), not texts" in said
    assert "Traceback" not in said
    assert run(tmp_path / "t.jsonl", tmp_path / "out", "--texts", "label") == 0
    assert metadata(tmp_path / "out")["000000002"] == {"label": 2}


def test_bytes_under_texts_are_one_line(tmp_path, capsys):
    parquet.write_table(table(), tmp_path / "t.parquet")
    assert run(tmp_path / "t.parquet", tmp_path / "out", "--texts", "image") == 1
    assert "the column 'image' holds files themselves" in capsys.readouterr().err


BROKEN = {
    "t.parquet": (b"", "t.parquet is empty"),
    "u.parquet": (b"no parquet" * 9, "u.parquet cannot be read as Parquet"),
    "t.arrow": (b"no arrow" * 9, "t.arrow cannot be read as Arrow"),
    "t.jsonl": (b'{"a": 1}\n[1]\n', "t.jsonl, line 2: expected an object"),
    "u.jsonl": (b'{"a": 1}\n{"a": \n', "u.jsonl, line 2: "),
    "v.jsonl": (b'{"a": 1, "a": 2}\n', "v.jsonl, line 1: the key 'a' occurs twice"),
    "w.jsonl": (b"\n\n", "w.jsonl is empty"),
    "t.json": (b"{", "t.json is not JSON"),
    "u.json": (b'{"a": 1}', "u.json: expected COCO's or Karpathy's JSON"),
    "v.json": (b'[{"a": 1}, 2]', "v.json, entry 1: expected an object"),
    "w.json": (b"[" * 9999, "nested too deeply"),
    "t.doc": (b"x", "expected a folder or one of"),
    "t.zip": (b"x", "t.zip is an archive: unpack it"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_one_line(tmp_path, capsys, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    assert run(tmp_path / name, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_that_is_cut_is_one_line(tmp_path, capsys, cut, kind):
    path = tmp_path / f"t.{kind}"
    parquet.write_table(table(), path) if kind == "parquet" else write_arrow(table(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    assert run(path, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"t.{kind}" in said
    assert "Traceback" not in said


def test_a_header_only_and_a_duplicate_column(tmp_path, capsys):
    parquet.write_table(table(0), tmp_path / "t.parquet")
    assert run(tmp_path / "t.parquet", tmp_path / "out") == 1
    assert "t.parquet has columns and no rows" in capsys.readouterr().err
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, ["text", "text"])
    write_arrow(twice, tmp_path / "t.arrow")
    assert run(tmp_path / "t.arrow", tmp_path / "out") == 1
    assert "the column 'text' is there twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        [{"image": f"{n}.jpg", "caption": f"dog {n}"} for n in range(3)],
        {"data": [{"image": f"{n}.jpg", "caption": f"dog {n}"} for n in range(3)]},
        {f"{n}.jpg": f"dog {n}" for n in range(3)},
        {f"{n}.jpg": {"caption": f"dog {n}"} for n in range(3)},
        {"image": [f"{n}.jpg" for n in range(3)], "caption": [f"dog {n}" for n in range(3)]},
    ],
)
def test_json_documents_of_rows(tmp_path, content):
    photos(tmp_path, 3)
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert run(tmp_path / "t.json", tmp_path / "out") == 0
    assert metadata(tmp_path / "out")["000000001"] == {"caption": "dog 1"}


def test_paths_outside_of_the_folder_are_refused_by_row(tmp_path, capsys):
    photos(tmp_path / "in", 2)
    photos(tmp_path / "secret", 2)
    paths = ["0.jpg", "../secret/1.jpg", f"{tmp_path}/secret/0.jpg", "/etc/passwd", "a\0b.jpg"]
    rows = [{"file": path, "text": "x y"} for path in paths]
    (tmp_path / "in/t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(tmp_path / "in/t.jsonl", tmp_path / "out", "--files", "file") == 0
    reasons = refused(tmp_path / "out")
    assert list(reasons.values()) == ["outside"] * 3 + ["no_file"]
    assert "line 2: ../secret/1.jpg is outside of" in capsys.readouterr().err
    words = ("--root", tmp_path, "--files", "file")
    (tmp_path / "in/t.jsonl").write_text('{"file": "in/0.jpg", "text": "x"}\n' +
        json.dumps({"file": f"{tmp_path}/secret/0.jpg", "text": "y"}))  # fmt: skip
    assert run(tmp_path / "in/t.jsonl", tmp_path / "two", *words) == 0
    assert len(samples(tmp_path / "two")) == 2


def nested(n):
    return {
        "id": n,
        "meta": {"info": {"file": f"{n}.jpg"}, "caption": f"a dog {n}", "other": "x y"},
    }


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json"])
def test_fields_of_objects_are_files_and_texts_too(tmp_path, capsys, kind):
    photos(tmp_path, 3)
    rows = [nested(n) for n in range(3)]
    file = tmp_path / f"t.{kind}"
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        file.write_text(json.dumps(rows))
    assert run(file, tmp_path / "out") == 0
    assert "files: meta.info.file; texts: meta.caption" in capsys.readouterr().err
    packed = samples(tmp_path / "out")
    assert {members["meta.info.file.jpg"] for members in packed.values()} == {
        jpeg(n) for n in range(3)
    }
    content = metadata(tmp_path / "out")["000000001"]
    assert content["meta.caption"] == "a dog 1"
    assert content["meta"]["other"] == "x y"
    assert run(file, tmp_path / "named", "--texts", "meta.other") == 0
    assert metadata(tmp_path / "named")["000000001"] == {"meta.other": "x y"}
    assert run(file, tmp_path / "wrong", "--texts", "meta.othr") == 1
    assert "has no column 'meta.othr'" in capsys.readouterr().err


def test_objects_of_rows_that_lack_a_field_leave_those_rows_out(tmp_path):
    photos(tmp_path, 3)
    rows = [
        nested(0),
        {"id": 1, "meta": {"info": None, "caption": "a dog"}},
        {"id": 2, "meta": None},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(tmp_path / "t.jsonl", tmp_path / "out") == 0
    packed = samples(tmp_path / "out")
    assert packed.keys() == {"train:000000000", "train:000000001"}
    assert sorted(packed["train:000000000"]) == ["json", "meta.info.file.jpg"]
    assert sorted(packed["train:000000001"]) == ["json"]
    assert list(refused(tmp_path / "out")) == ["000000002"]
