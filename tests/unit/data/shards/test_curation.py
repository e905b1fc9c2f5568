"""Keep-lists: near-duplicates, an evaluation set's overlap and low scores are left out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from data_helpers import json_bytes, npy_bytes, write_source
from loader_helpers import evaluation_loader

from multimodal.cli.make_shards import main
from multimodal.data.packing.index import verify
from multimodal.data.shards import remote
from multimodal.data.shards.curation import curate, near_duplicates, overlapping
from multimodal.data.shards.manifest import load_manifest
from multimodal.data.shards.remote import ShardCache
from multimodal.data.shards.table import packed, unpacked
from multimodal.data.source import Source
from multimodal.data.transforms.array import ArrayTransform
from multimodal.inference.search.table import PartWriter, Row

RANDOM = np.random.default_rng(0)
ENTRIES = {"x": {"member": "x.npy"}}


def scored(number: int) -> bytes:
    return json_bytes(score=number / 10)


def manifest(folder, counts=(5, 4, 3)):
    """Samples k0, k1, ..., whose array and score are their number."""
    shards, number = [], 0
    for count in counts:
        shards.append(
            [
                (
                    f"k{n}",
                    {
                        "x.npy": npy_bytes(np.array([n], np.float32)),
                        "json": json_bytes(score=n / 10),
                    },
                )
                for n in range(number, number + count)
            ]
        )
        number += count
    return write_source(folder, {"train": shards})


def numbers(path) -> list[int]:
    source = Source(str(path), ENTRIES)
    loader = evaluation_loader(source, {"x": ArrayTransform([1])}, None, len(source))
    (batch,) = loader
    assert [f"k{int(n)}" for n in batch.inputs["x"].flatten()] == batch.keys
    return [int(n) for n in batch.inputs["x"].flatten()]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_curated_manifest_reads_the_kept_samples_of_the_same_tars(tmp_path):
    path = manifest(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("*.tar")}
    unwanted = {"near-duplicate": {"k1", "k4"}, "overlap": {"k5", "k6", "k7", "k8"}}
    result = curate(path, tmp_path / "curated.json", unwanted, {"score": 0.1})
    assert result == (12, 5, {"score under 0.1": 1, "near-duplicate": 2, "overlap": 4})
    assert numbers(tmp_path / "curated.json") == [2, 3, 9, 10, 11]
    assert numbers(path) == list(range(12))
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*.tar")} == before
    table = load_manifest(tmp_path / "curated.json").split("train")
    assert table.samples.tolist() == [2, 3]  # a shard without any is not even opened
    assert table.stored.tolist() == [5, 3]
    assert verify(tmp_path / "curated.json")[1] == []
    # Again, elsewhere, on top of what was left out.
    (tmp_path / "far").mkdir()
    again = curate(tmp_path / "curated.json", tmp_path / "far" / "c.json", {"mine": ["k10"]})
    assert again == (5, 4, {"mine": 1})
    assert numbers(tmp_path / "far" / "c.json") == [2, 3, 9, 11]
    kept, whole = Source(str(tmp_path / "curated.json"), ENTRIES), Source(str(path), ENTRIES)
    assert kept.digest != whole.digest


def test_shards_behind_a_url_are_curated_and_verified(tmp_path, capsys, monkeypatch):
    """The new manifest is here and names the far tars as its base."""
    path = manifest(tmp_path / "far")
    url = f"local://{path}"
    here, cache = tmp_path / "here.json", ShardCache(tmp_path / "cache", 1 << 20)
    result = curate(url, here, {"mine": {"k1"}}, {"score": 0.1}, cache)
    assert result == (12, 10, {"mine": 1, "score under 0.1": 1})
    assert json.loads(here.read_text())["base"] == f"local://{tmp_path}/far"
    assert load_manifest(here).split("train").samples.tolist() == [3, 4, 3]
    assert verify(here)[1] == verify(url)[1] == []
    assert list(tmp_path.glob("verify-*")) == []
    for given in (url, f"local://{tmp_path}/far"):  # a manifest, or the folder that it is in
        assert main(["verify", given, "--workers", "1"]) == 0
        assert "12 samples in order, 0 problems" in capsys.readouterr().out
    monkeypatch.setattr(remote, "_PAUSE", 0.0)
    first = next((tmp_path / "far").glob("*.tar"))
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    assert main(["verify", url]) == 1
    assert "shard_hash" in capsys.readouterr().err
    assert main(["curate", url, "s3://bucket/new.json", "--min", "score=0"]) != 0
    assert "the new manifest is a local file" in capsys.readouterr().err
    assert main(["verify", "nope://bucket/a.json"]) != 0
    assert "nope" in capsys.readouterr().err


def test_near_duplicates_keep_the_first_of_each_kind():
    base = unit(RANDOM.standard_normal((3000, 64)))
    twins = unit(base[:500] + 0.02 * RANDOM.standard_normal((500, 64)))
    vectors = np.concatenate([base, twins, base[:1]])
    found = near_duplicates(vectors, 0.9)
    assert not found[:3000].any()
    assert found[3000:].all()
    chain = unit(np.array([[1, 0], [1, 0.4], [1, 0.8], [1, 5]]))  # each near the one before
    assert near_duplicates(chain, 0.92).tolist() == [False, True, False, False]
    near = overlapping(vectors, twins[:3], 0.9).nonzero()[0]
    assert near.tolist() == [0, 1, 2, 3000, 3001, 3002, 3500]


@pytest.mark.parametrize(
    ("unwanted", "least", "message"),
    [
        ({"mine": ["k99"]}, {}, "1 keys of the embeddings are of no sample"),
        ({}, {"score": 5.0}, "nothing is kept"),
        ({}, {"quality": 0.0}, "nothing is kept"),
    ],
)
def test_what_cannot_be_curated_is_refused(tmp_path, unwanted, least, message):
    path = manifest(tmp_path)
    with pytest.raises(ValueError, match=message):
        curate(path, tmp_path / "curated.json", unwanted, least)
    assert not (tmp_path / "curated.json").exists()


@pytest.mark.parametrize("kept", ["", "AA", "????", 5, None, "AAAA", "AA=="])
def test_a_keep_list_that_is_none_is_refused(tmp_path, kept):
    path = manifest(tmp_path, (5,))
    content = json.loads(path.read_text())
    content["shards"][0]["kept"] = kept
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"'kept' must be Base64|leaves no sample"):
        load_manifest(path)


def test_bits_come_back():
    for count in (1, 7, 8, 9, 1000):
        mask = RANDOM.random(count) < 0.5
        assert np.array_equal(unpacked(packed(mask), count), mask)


def table(path, vectors, keys) -> str:
    writer = PartWriter(path, {}, "x")
    writer.write(0, unit(vectors), [Row(key, "image", key) for key in keys])
    writer.finish(1)
    return str(path)


def test_the_command_curates_by_tables_of_embeddings(tmp_path, capsys):
    path = manifest(tmp_path)
    vectors = RANDOM.standard_normal((12, 32))
    vectors[7] = vectors[3] * 1.001
    held_out = np.concatenate([vectors[5:6], RANDOM.standard_normal((2, 32))])
    mine = table(tmp_path / "mine.npy", vectors, [f"k{n}" for n in range(12)])
    theirs = table(tmp_path / "theirs.npy", held_out, ["a", "b", "c"])
    out = tmp_path / "curated.json"
    words = ["curate", str(path), str(out), "--embeddings", mine, "--near-duplicates", "0.95"]
    assert main([*words, "--overlap", theirs, "--min", "score=0.2"]) == 0
    assert numbers(out) == [2, 3, 4, 6, 8, 9, 10, 11]
    assert "8 of 12 samples are kept" in capsys.readouterr().out
    assert main([*words[:3], "--near-duplicates", "0.9"]) != 0
    assert "--embeddings goes with" in capsys.readouterr().err
