"""Two manifests that share keys are one source; no tar is rewritten."""

from __future__ import annotations

import numpy as np
import pytest
from data_helpers import json_bytes, npy_bytes, write_source
from loader_helpers import evaluation_loader

from multimodal.data.shards.remote import ShardCache
from multimodal.data.source import Source, SourceContext
from multimodal.data.transforms.array import ArrayTransform

ENTRIES = {"a": {"member": "a.npy"}, "b": {"member": "b.npy"}}
TRANSFORMS = {name: ArrayTransform([1]) for name in ENTRIES}


def number(value: float) -> bytes:
    return npy_bytes(np.array([value], np.float32))


def two_manifests(folder, order=(4, 2, 0, 6, 8)) -> list[str]:
    """Samples 0 to 6 beside those of ``order``, whose names differ but not their ``id``."""
    first = [
        (f"k{n}", {"a.npy": number(n), "json": json_bytes(id=f"id{n}", title="first", one=n)})
        for n in range(7)
    ]
    second = [
        (f"k{n}", {"b.npy": number(10 * n), "json": json_bytes(id=f"id{n}", title="second", two=n)})
        for n in order
    ]
    return [
        str(write_source(folder / "1", {"train": [first[:3], first[3:]]}, name="first")),
        str(write_source(folder / "2", {"train": [second[:2], second[2:]]}, name="second")),
    ]


@pytest.mark.parametrize("key", ["__key__", "id"])
def test_samples_that_share_a_key_are_one(tmp_path, key):
    source = Source(two_manifests(tmp_path), ENTRIES, join=key)
    assert len(source) == 4
    loader = evaluation_loader(source, TRANSFORMS, None, 4)
    (batch,) = loader
    assert batch.keys == ["k0", "k2", "k4", "k6"]
    assert batch.inputs["a"].flatten().tolist() == [0, 2, 4, 6]
    assert batch.inputs["b"].flatten().tolist() == [0, 20, 40, 60]
    metadata = source.decode(1, None).metadata
    assert metadata == {"id": "id2", "title": "first", "one": 2, "two": 2}
    assert sorted(source.read(1).members) == ["a.npy", "b.npy", "json"]


def test_a_text_may_come_from_either_json(tmp_path):
    entries = {"a": ENTRIES["a"], "text": {"member": "json", "template": "{one} and {two}"}}
    source = Source(two_manifests(tmp_path), entries, join="id")
    assert source.decode(3, None).values["text"] == "6 and 6"


def test_what_cannot_be_joined_is_refused(tmp_path):
    paths = two_manifests(tmp_path)
    with pytest.raises(ValueError, match=r"no 'nothing' of .* is one of"):
        Source(paths, ENTRIES, join="nothing")
    with pytest.raises(ValueError, match="values of 'title' occur more than once"):
        Source(paths, ENTRIES, join="title")
    with pytest.raises(ValueError, match=r"both have a\.npy"):
        Source([paths[0], paths[0]], {"a": ENTRIES["a"]}, join="id")
    for wrong in ({"manifest": paths}, {"manifest": paths[:1], "join": "id"}):
        with pytest.raises(ValueError, match="two that share the key"):
            Source(modalities=ENTRIES, **wrong)


def test_a_joined_source_has_its_own_identity(tmp_path):
    paths = two_manifests(tmp_path)
    others = two_manifests(tmp_path / "other", order=(6, 2, 0, 4, 8))
    digests = {
        Source(paths, ENTRIES, join="id").digest,
        Source(paths[0], {"a": ENTRIES["a"]}).digest,
        Source([paths[0], others[1]], ENTRIES, join="id").digest,
    }
    assert len(digests) == 3


@pytest.mark.parametrize("far", [(True, True), (True, False), (False, True)])
def test_manifests_behind_urls_are_joined_when_they_are_used(tmp_path, far):
    paths = two_manifests(tmp_path)
    where = [f"local://{path}" if remote else path for path, remote in zip(paths, far, strict=True)]
    there = sorted(tmp_path.rglob("*.tar"))
    hidden = [path.rename(path.with_suffix(".away")) for path in there]
    source = Source(where, ENTRIES, join="id")  # opens no shard: nobody has said that it may
    assert len(source.folders) == 2
    for path, before in zip(hidden, there, strict=True):
        path.rename(before)
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    source = source.within(SourceContext(remote=cache))
    assert len(source) == 4
    (batch,) = evaluation_loader(source, TRANSFORMS, None, 4)
    assert batch.inputs["b"].flatten().tolist() == [0, 20, 40, 60]
    assert source.digest == Source(paths, ENTRIES, join="id").digest
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2 * sum(far)
    source.fetch_ahead([0, 1])
