"""`make_shards.py --checkpoint`: how well pairs match, and leaving out those that do not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import json_bytes, npy_bytes, write_source
from omegaconf import OmegaConf
from torch import Tensor, nn

from multimodal.core.similarity.similarities import COSINE
from multimodal.data.shards.manifest import load_manifest
from multimodal.data.source import Source
from multimodal.inference.checkpoint import load
from multimodal.inference.similarity import histogram, pair_similarities

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))
from multimodal.cli import make_shards


class Angles(nn.Module):
    """Embeds an angle as a point on the circle, whatever the modality."""

    similarity = COSINE

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def tower(self, modality: str) -> nn.Module:
        if modality not in ("a", "b"):
            raise ValueError(f"no tower for modality {modality!r}")
        return self

    def embed(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.cat([inputs.cos(), inputs.sin()], dim=1)


ARRAY = {"_target_": "multimodal.data.ArrayTransform", "shape": [1]}
CFG = OmegaConf.create({"data": {"transforms": {"a": ARRAY, "b": ARRAY}}})


TRUSTED: list[str] = []  # by the caller of `load_model`


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Sample n has two angles that are n / 10 apart; one sample cannot be embedded."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for number in range(30):
        first = np.array([number], np.float32)
        (folder / f"s{number:02d}.a.npy").write_bytes(npy_bytes(first))
        (folder / f"s{number:02d}.b.npy").write_bytes(npy_bytes(first + number / 10))
    (folder / "odd.a.npy").write_bytes(npy_bytes(np.zeros(2, np.float32)))
    (folder / "odd.b.npy").write_bytes(npy_bytes(np.zeros(1, np.float32)))
    TRUSTED.clear()

    def load_model(path, packages, addresses):
        TRUSTED.extend([*packages, *addresses])
        return Angles(), CFG

    monkeypatch.setattr(load, "load_model", load_model)
    return folder


WORDS = ("--checkpoint", "any.ckpt", "--pair", "a=a.npy", "b=b.npy")


def test_packages_and_addresses_that_the_caller_names_are_passed_on(folder, tmp_path):
    named = ["--allowed-packages", "mine", "--allowed-addresses", "https://host/folder"]
    assert make_shards.main([str(folder), str(tmp_path / "a"), *WORDS]) == 0
    assert TRUSTED == []
    assert make_shards.main([str(folder), str(tmp_path / "b"), *WORDS, *named]) == 0
    assert TRUSTED == ["mine", "https://host/folder"]


def test_pairs_under_the_threshold_are_left_out_and_named(folder, tmp_path):
    out = tmp_path / "out"
    words = [str(folder), str(out), *WORDS, "--min-similarity", "0.5", "--split", "train=0.8",
             "val=0.2"]  # fmt: skip
    assert make_shards.main(words) == 0
    manifest = load_manifest(out / "out.json")
    kept = {
        source.read(index).key
        for split in manifest.splits
        for source in [Source(str(out / "out.json"), {"a": {"member": "a.npy"}}, split)]
        for index in range(len(source))
    }
    assert kept == {f"s{number:02d}" for number in range(30) if np.cos(number / 10) >= 0.5}
    refused = [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]
    reasons = {entry["key"]: entry["reason"] for entry in refused}
    assert reasons.pop("odd") == "no_similarity"
    assert set(reasons.values()) == {"low_similarity"}
    assert len(reasons) + len(kept) == 30
    report = json.loads((out / "report.json").read_text())["pair_similarity"]
    assert sum(report["counts"]) == 30
    assert not (out / ".all").exists()


def test_similarities_are_cosines(folder, tmp_path):
    make_shards.main([str(folder), str(tmp_path / "out")])
    entries = {"a": {"member": "a.npy"}, "b": {"member": "b.npy"}}
    found = pair_similarities(Angles(), CFG, tmp_path / "out" / "out.json", entries)
    assert found.keys() == {f"s{number:02d}" for number in range(30)}
    for key, cosine in found.items():
        assert cosine == pytest.approx(np.cos(int(key[1:]) / 10), abs=1e-5)
    with pytest.raises(ValueError, match=r"no tower for modality .c."):
        pair_similarities(Angles(), CFG, tmp_path / "out" / "out.json", {"a": {}, "c": {}})


def test_several_captions_count_by_their_mean(tmp_path):
    class Texts(Angles):
        def embed(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
            angles = inputs if modality == "a" else inputs[:, 1:2].float()
            return super().embed(modality, angles)

    class Number:
        def __call__(self, value, draw):
            return torch.tensor([0, int(value)])

        def collate(self, inputs):
            return torch.stack(inputs), None

    samples = [
        (f"k{n}", {"a.npy": npy_bytes(np.array([n], np.float32)), "json": json_bytes(texts=texts)})
        for n, texts in enumerate((["0", "1", "3"], ["1"], ["5", "2"]))
    ]
    path = write_source(tmp_path, {"train": [samples]})
    entries = {"a": {"member": "a.npy"}, "b": {"member": "json", "key": "texts", "keep": "all"}}
    transforms = {"a": ARRAY, "b": Number()}
    cfg = OmegaConf.create({"data": {"transforms": transforms}}, flags={"allow_objects": True})
    seen = []
    found = pair_similarities(Texts(), cfg, path, entries, lambda done, total: seen.append(done))
    assert seen == [3]  # samples, not captions
    expected = {"k0": (1 + np.cos(1) + np.cos(3)) / 3, "k1": 1, "k2": (np.cos(3) + 1) / 2}
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_histogram_counts_in_equal_steps():
    report = histogram([-1.0, -0.95, 0.0, 0.99, 1.0])
    assert report["counts"][0] == report["counts"][-1] == 2
    assert sum(report["counts"]) == 5
