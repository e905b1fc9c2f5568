"""Folders as people have them: names with dots, classes, splits, tables about files, links."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pytest
from data_helpers import image_bytes, npy_bytes, tar_bytes
from packing_helpers import jpeg, metadata, photos, refused, run, samples, wav

from multimodal.data.packing.layouts.names import MemberNames


def members(folder):
    """Key -> its members without the metadata."""
    return {
        key.partition(":")[2]: sorted(set(found) - {"json"})
        for key, found in samples(folder).items()
    }


def test_dots_in_names_are_the_samples(tmp_path):
    folder = photos(tmp_path / "in", 12, "holiday 2024.01.{:02d}.jpg")
    for number in range(12):
        (folder / f"holiday 2024.01.{number:02d}.txt").write_text(f"day {number}")
    assert run(folder, tmp_path / "out", "--require", "jpg", "txt") == 0
    assert members(tmp_path / "out") == {
        f"holiday_2024_01_{number:02d}": ["jpg", "txt"] for number in range(12)
    }
    assert metadata(tmp_path / "out")["holiday_2024_01_03"] == {
        "original_name": "holiday 2024.01.03"
    }
    assert run("verify", tmp_path / "out") == 0


def test_a_song_of_a_version_is_a_sound(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/235341 Track 2.1 (Clean Version).wav").write_bytes(wav(1))
    (tmp_path / "in/v1.0 final.wav").write_bytes(wav(2))
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert members(tmp_path / "out") == {
        "235341_Track_2_1_(Clean_Version)": ["wav"],
        "v1_0_final": ["wav"],
    }


NAMES = {
    "members of every sample": (
        ["1.gps.npy", "1.jpg", "2.gps.npy", "2.jpg"],
        {"1": {"gps.npy", "jpg"}, "2": {"gps.npy", "jpg"}},
    ),
    "one sample": (["t1.gps.npy", "t1.jpg"], {"t1": {"gps.npy", "jpg"}}),
    "views": (
        [f"{n}.{side}.png" for n in range(3) for side in ("left", "right")],
        {str(n): {"left.png", "right.png"} for n in range(3)},
    ),
    "texts in two languages": (
        [f"{n}.{e}" for n in range(3) for e in ("jpg", "de.txt", "en.txt")],
        {str(n): {"jpg", "de.txt", "en.txt"} for n in range(3)},
    ),
    "a kind": (["a b.depth.png", "a b.jpg"], {"a b": {"depth.png", "jpg"}}),
    "places": (
        ["p.paris.jpg", "p.paris.txt", "p.rome.jpg", "p.rome.txt", "q.rome.jpg", "q.rome.txt"],
        {f: {"jpg", "txt"} for f in ("p.paris", "p.rome", "q.rome")},
    ),
    "people": (
        ["john.smith.jpg", "john.doe.jpg", "mary.smith.jpg", "ann.lee.jpg"],
        {f: {"jpg"} for f in ("john.smith", "john.doe", "mary.smith", "ann.lee")},
    ),
    "dates": (["2024.01.05.jpg", "2024.01.06.JPG"], {"2024.01.05": {"jpg"}, "2024.01.06": {"jpg"}}),
}


@pytest.mark.parametrize("name", NAMES)
def test_members_have_their_names_in_many_samples(name):
    files, expected = NAMES[name]
    names = MemberNames(files)
    found: dict[str, set[str]] = {}
    for file in files:
        split = names.split(file)
        found.setdefault(split.sample, set()).add(split.member)
    assert found == expected


def test_named_members_are_taken_as_they_are(tmp_path):
    folder = photos(tmp_path / "in", 2, "p.{}.edited.jpg")
    assert run(folder, tmp_path / "out", "--members", "edited.jpg") == 0
    assert members(tmp_path / "out") == {"p_0": ["edited.jpg"], "p_1": ["edited.jpg"]}


def test_capitals_do_not_matter_in_extensions_and_pairs(tmp_path):
    folder = photos(tmp_path / "in", 3, "IMG_{}.JPG")
    photos(folder, 6, "img{}.jpg")
    for number in range(3):
        (folder / f"img_{number}.txt").write_text("a dog")
        (folder / f"img{number}.Txt").write_text("a cat")
    assert run(folder, tmp_path / "out", "--require", "JPG") == 0
    found = members(tmp_path / "out")
    assert found == {
        **{f"IMG_{n}": ["jpg", "txt"] for n in range(3)},
        **{f"img{n}": ["jpg", "txt"] for n in range(3)},
        **{f"img{n}": ["jpg"] for n in range(3, 6)},
    }


def test_keys_that_differ_in_capitals_only_are_told_apart(tmp_path):
    folder = photos(tmp_path / "in", 1, "A{}.jpg")
    photos(folder, 1, "a{}.jpg")
    (folder / "cafe\u0301.jpg").write_bytes(jpeg(3))
    assert run(folder, tmp_path / "out") == 0
    keys = members(tmp_path / "out")
    assert len({key.casefold() for key in keys}) == 3
    assert "caf\u00e9" in keys
    names = {each.get("original_name") for each in metadata(tmp_path / "out").values()}
    assert names == {"A0", "a0", "cafe\u0301"}


def test_two_files_of_one_kind_are_refused_by_name(tmp_path, capsys):
    folder = photos(tmp_path / "in", 2)
    (folder / "0.png").write_bytes(image_bytes(np.zeros((4, 4, 3), np.uint8)))
    (folder / "1.JPG").write_bytes(jpeg(7))
    (folder / "2.jpg").write_bytes(jpeg(8))
    assert run(folder, tmp_path / "out") == 0
    assert members(tmp_path / "out") == {"2": ["jpg"]}
    assert refused(tmp_path / "out") == {"0": "ambiguous", "1": "ambiguous"}
    said = capsys.readouterr().err
    assert "2 files of one kind, image: 0.jpg, 0.png (--members names both)" in said
    assert run(folder, tmp_path / "both", "--members", "jpg", "png") == 0
    assert members(tmp_path / "both")["0"] == ["jpg", "png"]


def test_what_a_sample_has_is_said_where_a_member_is_missing(tmp_path, capsys):
    folder = photos(tmp_path / "in", 2, "{}.jpeg")
    assert run(folder, tmp_path / "out", "--require", "jpg") == 1
    assert "no member 'jpg'; it has jpeg" in capsys.readouterr().err
    assert run(folder, tmp_path / "out", "--require", "image") == 0


def test_class_folders_give_labels(tmp_path, capsys):
    folder = photos(tmp_path / "in", 4, "cat/{}.jpeg")
    photos(folder, 3, "big dog/{}.JPEG")
    for name in ("README", "README.md", "licence.txt"):
        (folder / name).write_text("about all")
    assert run(folder, tmp_path / "out", "--label", "label") == 0
    found = metadata(tmp_path / "out")
    assert found["cat/3"] == {"label": "cat"}
    assert found["big_dog/1"] == {"label": "big dog", "original_name": "big dog/1"}
    assert "class folders: cat (4), big dog (3)" in capsys.readouterr().err
    assert refused(tmp_path / "out") == {
        "README": "no_field", "README.md": "no_class", "licence.txt": "no_class"}  # fmt: skip
    assert run(folder, tmp_path / "plain", "--layout", "pairs") == 0
    assert metadata(tmp_path / "plain")["cat/3"] == {}


def test_folders_side_by_side_hold_parts_of_the_same_samples(tmp_path):
    folder = photos(tmp_path / "in", 6, "images/a/{}.jpg")
    for name in ("captions/a", "depth/a"):
        (folder / name).mkdir(parents=True)
    for number in range(5):
        (folder / f"captions/a/{number}.txt").write_text("a dog")
        depth = image_bytes(np.full((8, 8), 1000 + number, np.uint16))
        (folder / f"depth/a/{number}.png").write_bytes(depth)
    assert run(folder, tmp_path / "out") == 0
    found = members(tmp_path / "out")
    assert found == {f"a/{n}": ["depth.png", "jpg", "txt"] for n in range(5)} | {"a/5": ["jpg"]}
    other = photos(tmp_path / "other", 6, "cats/{}.jpg")
    photos(other, 6, "dogs/{}.jpg")
    assert run(other, tmp_path / "two") == 0
    assert len(members(tmp_path / "two")) == 12


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev"])
def test_folders_of_splits_are_splits(tmp_path, validation):
    for split in ("train", validation, "Test"):
        photos(tmp_path / "in", 3, f"{split}/cat/{{}}.jpg")
        photos(tmp_path / "in", 2, f"{split}/dog/{{}}.jpg")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    found = samples(tmp_path / "out")
    assert {key.split("/")[0] for key in found} == {
        "train:train", f"val:{validation}", "test:Test"}  # fmt: skip
    assert json.loads(found[f"val:{validation}/dog/1"]["json"]) == {"label": "dog"}
    assert run(tmp_path / "in", tmp_path / "one", "--split", "train=1") == 0
    assert {key.split(":")[0] for key in samples(tmp_path / "one")} == {"train"}


def write_metadata(folder, kind, rows):
    path = folder / f"metadata.{kind}"
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("where", ["", "train"])
def test_an_image_folder_of_datasets_keeps_its_captions(tmp_path, capsys, kind, where):
    folder = photos(tmp_path / "in" / where, 4, "pictures/{}.JPG")
    rows = [{"file_name": f"pictures/{n}.JPG", "text": f"dog {n}", "n": n} for n in range(3)]
    write_metadata(folder, kind, [*rows, {"file_name": "9.jpg", "text": "none", "n": 9}])
    if where:
        write_metadata(photos(tmp_path / "in/validation", 2), kind, [
            {"file_name": f"{n}.jpg", "text": f"cat {n}", "n": n} for n in range(2)])  # fmt: skip
    assert run(tmp_path / "in", tmp_path / "out") == 0
    found = samples(tmp_path / "out")
    prefix = "train:" + (f"{where}/" if where else "")
    assert json.loads(found[f"{prefix}pictures/2"]["json"])["text"] == "dog 2"
    assert found[f"{prefix}pictures/2"]["jpg"] == (folder / "pictures/2.JPG").read_bytes()
    assert len(found) == (5 if where else 3)
    reasons = refused(tmp_path / "out")
    assert sorted(reasons.values()) == ["no_file", "not_listed"]
    assert "left out: 1 not_listed" in capsys.readouterr().err
    if where:
        assert "val:validation/1" in found


def test_several_file_names_in_a_row_are_members(tmp_path):
    folder = photos(tmp_path / "in", 2)
    for number in range(2):
        depth = image_bytes(np.full((8, 8), 1000 + number, np.uint16))
        (folder / f"{number}.png").write_bytes(depth)
    rows = [
        {"image_file_name": f"{n}.jpg", "depth_file_name": f"{n}.png", "text": "a room"}
        for n in range(2)
    ]
    write_metadata(folder, "csv", rows)
    assert run(folder, tmp_path / "out") == 0
    assert members(tmp_path / "out")["0"] == ["depth.png", "image.jpg"]


def test_an_audio_folder_of_datasets(tmp_path):
    (tmp_path / "in/data").mkdir(parents=True)
    for number in range(3):
        (tmp_path / f"in/data/{number}.wav").write_bytes(wav(number))
    rows = [{"file_name": f"data/{n}.wav", "transcription": f"say {n}"} for n in range(3)]
    write_metadata(tmp_path / "in", "csv", rows)
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert metadata(tmp_path / "out")["data/1"] == {"transcription": "say 1"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "metadata.csv is empty"),
        ("file_name,text\n", "metadata.csv has a header and no rows"),
        ("file_name,text,text\n0.jpg,a,b\n", "the column 'text' is there twice"),
        ("file_name,text\n0.jpg,a, b\n", "metadata.csv, line 2: 3 cells"),
        ("name,text\nzero,a\n", "metadata.csv names no files: it has no column 'file_name'"),
    ],
)
def test_a_broken_table_about_a_folder_is_one_line(tmp_path, capsys, content, message):
    folder = photos(tmp_path / "in", 2)
    (folder / "metadata.csv").write_text(content)
    assert run(folder, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_folder_with_a_table_about_its_pictures(tmp_path, capsys):
    folder = photos(tmp_path / "in", 4, "Images/{}.jpg")
    lines = [f"{n}.jpg,caption {k} of {n}\n" for n in range(3) for k in range(5)]
    (folder / "captions.txt").write_text("image,caption\n" + "".join(lines))
    assert run(folder, tmp_path / "out") == 0
    found = metadata(tmp_path / "out")
    assert found["1"] == {"caption": [f"caption {k} of 1" for k in range(5)]}
    assert refused(tmp_path / "out") == {"Images/3.jpg": "not_listed"}
    assert "a sample for each of image, all its captions in caption" in capsys.readouterr().err


def test_links_are_followed_and_loops_and_dangling_ones_are_named(tmp_path, capsys):
    folder = photos(tmp_path / "in", 2, "a/{}.jpg")
    photos(tmp_path / "far", 2, "f{}.jpg")
    (folder / "far").symlink_to(tmp_path / "far")
    (folder / "a/back").symlink_to(folder)
    (folder / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    os.mkfifo(folder / "pipe.jpg")
    assert run(folder, tmp_path / "out", "--layout", "pairs") == 0
    assert sorted(members(tmp_path / "out")) == ["a/0", "a/1", "far/f0", "far/f1"]
    assert refused(tmp_path / "out") == {
        "a/back": "link_loop",
        "gone.jpg": "broken_link",
        "self.jpg": "broken_link",
        "pipe.jpg": "unreadable",
    }
    assert "left out: 2 broken_link" in capsys.readouterr().err


def test_texts_of_other_encodings(tmp_path, capsys):
    folder = photos(tmp_path / "in", 4)
    (folder / "0.txt").write_bytes("a dog".encode("utf-8-sig"))
    (folder / "1.txt").write_bytes("ein Käfer".encode("utf-16"))
    (folder / "2.txt").write_bytes("ein Käfer".encode("latin-1"))
    (folder / "3.json").write_bytes('{"caption": "x y"}'.encode("utf-8-sig"))
    assert run(folder, tmp_path / "out") == 0
    found = samples(tmp_path / "out")
    assert [found[f"train:{n}"]["txt"] for n in range(2)] == [b"a dog", "ein Käfer".encode()]
    assert json.loads(found["train:3"]["json"]) == {"caption": "x y"}
    assert refused(tmp_path / "out") == {"2": "encoding"}
    shown = capsys.readouterr().err
    assert "2.txt: line 1: the bytes 0xe4 are not UTF-8; repair the file, or name the" in shown
    assert run(folder, tmp_path / "two", "--encoding", "latin-1") == 0
    assert samples(tmp_path / "two")["train:2"]["txt"] == "ein Käfer".encode()


def test_media_that_nothing_reads_takes_its_text_along(tmp_path, capsys):
    folder = photos(tmp_path / "in", 2)
    for name in ("0.txt", "s.txt"):
        (folder / name).write_text("a dog")
    (folder / "s.xyz").write_bytes(b"?")
    (folder / "0.xmp").write_bytes(b"?")
    assert run(folder, tmp_path / "out") == 0
    assert members(tmp_path / "out") == {"0": ["jpg", "txt"], "1": ["jpg"]}
    assert refused(tmp_path / "out") == dict.fromkeys(["s.xyz", "s", "0.xmp"], "unsupported")
    assert "left out: 3 unsupported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "holds no files"),
        (lambda folder: (folder / "a.zip").write_bytes(b"PK"), "unsupported"),
        (lambda folder: (folder / "a.jpg").write_bytes(b""), "'jpg' has no bytes"),
    ],
)
def test_folders_with_nothing_to_pack_are_one_line(tmp_path, capsys, make, message):
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    assert run(tmp_path / "in", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_tars_with_dots_in_their_names_are_sorted_again(tmp_path):
    (tmp_path / "in").mkdir()
    listed = [
        (f"holiday 2024.01.{n:02d}.{e}", data)
        for n in range(3)
        for e, data in (("jpg", jpeg(n)), ("txt", b"a day"))
    ]
    listed += [(f"k{n}.a.npy", npy_bytes(np.array([n]))) for n in range(2)]
    (tmp_path / "in/a.tar").write_bytes(tar_bytes(listed))
    for given in ("in", "in/a.tar"):
        out = tmp_path / f"out-{given.replace('/', '-')}"
        assert run(tmp_path / given, out, "--name", "x") == 0
        assert members(out) == {
            **{f"holiday_2024_01_{n:02d}": ["jpg", "txt"] for n in range(3)},
            **{f"k{n}": ["a.npy"] for n in range(2)},
        }
