from __future__ import annotations

import json

import numpy as np
import pytest
from data_helpers import number_samples, write_source

from multimodal.data.shards.manifest import load_manifest, manifest_hash
from multimodal.data.shards.paths import SAMPLES_FOLDER, resolve
from multimodal.data.shards.table import ShardRow, ShardTable


@pytest.fixture
def path(tmp_path):
    return write_source(
        tmp_path,
        {"train": [number_samples(3), number_samples(5, 3)], "test": [number_samples(2, 8)]},
        fields={"y.npy": {"kind": "array", "splits": ["test"]}},
    )


def edited(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return path


def test_the_table_holds_what_the_manifest_says(path):
    content = json.loads(path.read_text())
    manifest = load_manifest(path)
    table = manifest.split("train")
    assert len(table) == 2
    assert table.num_samples == 8
    assert [table.name(i) for i in range(2)] == ["made-train-000.tar", "made-train-001.tar"]
    for i in range(2):
        assert table.bytes[i] == (path.parent / table.name(i)).stat().st_size
        assert bytes(table.sha256[i]).hex() == content["shards"][i]["sha256"]
    assert manifest.split("test").num_samples == 2


def test_every_index_is_located_once(path):
    table = load_manifest(path).split("train")
    places = [table.locate(index) for index in range(8)]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    for index in (-1, 8):
        with pytest.raises(IndexError, match="of 8"):
            table.locate(index)


def test_a_large_table_stays_small_and_locates():
    count = 20_000
    shards = [ShardRow(f"part-{i:07d}.tar", 10_000, 1 << 30, "0" * 64) for i in range(count)]
    table = ShardTable.of(shards)
    assert table.num_samples == 10_000 * count
    assert table.locate(123_456_789) == (12_345, 6_789)
    columns = (table.names, table.samples, table.bytes, table.sha256, table.starts)
    assert sum(column.nbytes for column in columns) < 100 * count


def test_unknown_splits_and_members_are_rejected_with_the_nearest_name(path):
    manifest = load_manifest(path)
    with pytest.raises(ValueError, match="no split 'trian'; did you mean 'train'"):
        manifest.split("trian")
    with pytest.raises(ValueError, match=r"no member 'x\.npz'; did you mean 'x\.npy'"):
        manifest.field("x.npz", "train")
    with pytest.raises(ValueError, match=r"'y\.npy' is in the split test, not in 'train'"):
        manifest.field("y.npy", "train")
    assert manifest.field("y.npy", "test").kind == "array"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(format="other/2"), "'format' must be 'multimodal-manifest/1'"),
        (lambda c: c.update(name=""), "'name' must be a text"),
        (lambda c: c.pop("fields"), "'fields' must be an object"),
        (lambda c: c["fields"].update(z={"kind": "smell"}), "field 'z': 'kind' must be one of"),
        (lambda c: c["fields"]["json"].update(keys="name"), "'keys' must be a list of texts"),
        (lambda c: c.update(shards=[]), "at least one shard"),
        (lambda c: c["shards"][0].update(samples=0), "'samples' must be a whole number above 0"),
        (lambda c: c["shards"][0].update(bytes="9"), "'bytes' must be a whole number above 0"),
        (lambda c: c["shards"][0].update(sha256="ab"), "64 hexadecimal digits"),
        (lambda c: c["shards"][0].update(name="../a.tar"), "within the manifest's folder"),
        (lambda c: c["shards"][0].update(name="/a.tar"), "within the manifest's folder"),
        (lambda c: c["shards"][0].update(name="http://a/b.tar"), "within the manifest's folder"),
        (lambda c: c["shards"][0].pop("split"), "'split' must be a text"),
        (lambda c: c["shards"][1].update(name="made-train-000.tar"), "listed twice"),
    ],
)
def test_faults_are_named(path, edit, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_manifest(edited(path, edit))
    assert "made.json" in str(caught.value)


def test_all_faults_are_reported_together(path):
    def edit(content):
        content["name"] = 3
        content["shards"][0]["samples"] = -1
        content["shards"][2]["sha256"] = None

    with pytest.raises(ValueError, match="is invalid") as caught:
        load_manifest(edited(path, edit))
    assert str(caught.value).count("\n  - ") == 3


def test_files_that_are_not_manifests(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no manifest .*none\.json"):
        load_manifest(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_manifest(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        load_manifest(tmp_path / "list.json")


def test_the_hash_follows_the_shards(path):
    before = manifest_hash(path)
    assert manifest_hash(str(path)) == before
    edited(path, lambda content: content["shards"][0].update(sha256="0" * 64))
    assert manifest_hash(path) != before


def test_paths(tmp_path):
    assert resolve("samples://emoji.json") == SAMPLES_FOLDER.resolve() / "emoji.json"
    assert resolve(tmp_path) == tmp_path
    with pytest.raises(ValueError, match="is outside"):
        resolve("samples://../shards.py")
    with pytest.raises(ValueError, match="s3:// is unknown"):
        resolve("s3://bucket/emoji.json")


def test_starts_are_the_running_sum(path):
    assert np.array_equal(load_manifest(path).split("train").starts, [0, 3, 8])
