"""COCO's JSON, Karpathy's splits, Flickr30k's tables: as they are published."""

from __future__ import annotations

import json

import pytest
from packing_helpers import metadata, photos, refused, run, samples


def coco(captions=True, **changes):
    images = [
        {"id": 100 + n, "file_name": f"COCO_val_{n}.jpg", "height": 48, "width": 48}
        for n in range(3)
    ]
    kind = [("caption", f"dog {n} {k}", n) for n in range(3) for k in range(2)]
    notes = [{"id": i, "image_id": 100 + n, key: text} for i, (key, text, n) in enumerate(kind)]
    if not captions:
        notes = [{"image_id": 100 + n, "category_id": c} for n in range(3) for c in (1, 2, 1)]
    names = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    return {"images": images, "annotations": notes, "categories": names, **changes}


@pytest.mark.parametrize("where", ["annotations/../val2017", "annotations", "annotations/val"])
def test_coco_is_packed_with_all_captions(tmp_path, where, capsys):
    (tmp_path / "annotations").mkdir()
    photos((tmp_path / where).resolve(), 3, "COCO_val_{}.jpg")
    content = coco()
    content["annotations"] += [
        {"image_id": 102, "caption": " "},
        {"image_id": 102, "caption": None},
        {"image_id": 999, "caption": "of nothing"},
    ]
    content["images"] += [{"id": 103, "file_name": "a.jpg"}, {"id": 104, "file_name": "b.jpg"}]
    content["annotations"] += [{"image_id": 104, "caption": "no file"}]
    (tmp_path / "annotations/captions.json").write_text(json.dumps(content))
    assert run(tmp_path / "annotations/captions.json", tmp_path / "out") == 0
    found = metadata(tmp_path / "out")
    assert found == {f"COCO_val_{n}": {"captions": [f"dog {n} 0", f"dog {n} 1"]} for n in range(3)}
    assert samples(tmp_path / "out").keys() == {f"train:COCO_val_{n}" for n in range(3)}
    assert refused(tmp_path / "out") == {
        "image 999": "no_file", "a.jpg": "no_text", "b.jpg": "no_file"}  # fmt: skip
    assert "captions.json: COCO's JSON, 5 images" in capsys.readouterr().err


def test_objects_of_coco_are_labels(tmp_path):
    photos(tmp_path, 3, "COCO_val_{}.jpg")
    (tmp_path / "instances.json").write_text(json.dumps(coco(captions=False)))
    assert run(tmp_path / "instances.json", tmp_path / "out") == 0
    assert metadata(tmp_path / "out")["COCO_val_1"] == {"labels": ["cat", "dog"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 1}]}, "coco.json: image without 'file_name'"),
        ({"annotations": [{"caption": "x"}]}, "coco.json: annotation without 'image_id'"),
        ({"images": ["x"]}, "coco.json: image without 'id': 'x'"),
        ({"images": []}, "coco.json lists no images"),
    ],
)
def test_what_is_no_coco_is_one_line(tmp_path, capsys, changes, message):
    photos(tmp_path, 3, "COCO_val_{}.jpg")
    (tmp_path / "coco.json").write_text(json.dumps(coco(**changes)))
    assert run(tmp_path / "coco.json", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize("folder", ["train2014", ""])
def test_karpathys_splits_are_the_splits(tmp_path, folder):
    photos(tmp_path / "images" / folder, 4)
    splits = ["train", "restval", "val", "test"]
    images = [
        {
            "filename": f"{n}.jpg",
            "split": split,
            "sentences": [{"raw": f"dog {n}.", "tokens": ["dog"]}, {"raw": "a dog"}],
        }
        | ({"filepath": folder} if folder else {})
        for n, split in enumerate(splits)
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    assert run(tmp_path / "dataset.json", tmp_path / "out") == 0
    prefix = f"{folder}/" if folder else ""
    assert samples(tmp_path / "out").keys() == {
        f"train:{prefix}0", f"train:{prefix}1", f"val:{prefix}2", f"test:{prefix}3"}  # fmt: skip
    assert metadata(tmp_path / "out")[f"{prefix}2"] == {"captions": ["dog 2.", "a dog"]}


FLICKR = "image_name| comment_number| comment\n" + "".join(
    f"{n}.jpg| {k}| Dog {n}, take {k} .\n" for n in range(3) for k in range(5)
)


def test_flickrs_table_of_pipes(tmp_path, capsys):
    photos(tmp_path / "flickr30k_images", 3)
    (tmp_path / "results.csv").write_text(FLICKR)
    assert run(tmp_path / "results.csv", tmp_path / "out") == 0
    found = metadata(tmp_path / "out")
    assert found["1"] == {"comment": [f"Dog 1, take {k} ." for k in range(5)]}
    assert len(found) == 3
    # the one row of the published table that lacks its second pipe
    (tmp_path / "results.csv").write_text(FLICKR.replace("1.jpg| 4| Dog", "1.jpg| 4   Dog"))
    assert run(tmp_path / "results.csv", tmp_path / "out") == 1
    assert "results.csv, line 11: 2 cells, for 3 columns" in capsys.readouterr().err
    assert run(tmp_path / "results.csv", tmp_path / "out", "--skip-broken") == 0
    assert len(metadata(tmp_path / "out")["1"]["comment"]) == 4
    words = ("--layout", "rows", "--skip-broken")
    assert run(tmp_path / "results.csv", tmp_path / "rows", *words) == 0
    assert len(samples(tmp_path / "rows")) == 14


@pytest.mark.parametrize("name", ["results.token", "Flickr8k.token.txt"])
def test_flickrs_token_file(tmp_path, name, capsys):
    photos(tmp_path / "images", 3)
    lines = [f"{n}.jpg#{k}\tDog {n}, take {k} .\n" for n in range(3) for k in range(5)]
    (tmp_path / name).write_text("".join(lines))
    assert run(tmp_path / name, tmp_path / "out") == 0
    assert metadata(tmp_path / "out")["2"] == {
        "captions": [f"Dog 2, take {k} ." for k in range(5)]}  # fmt: skip
    (tmp_path / name).write_text("".join(lines) + "a line\n")
    assert run(tmp_path / name, tmp_path / "out") == 1
    assert f"{name}, line 16: expected IMAGE#NUMBER" in capsys.readouterr().err
