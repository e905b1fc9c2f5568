"""The tasks of a fusion, scored by several ranks as by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from experiment_helpers import SENSOR, composed, write_sensor_shards
from gloo import run_ranks
from hydra.utils import instantiate
from loader_helpers import evaluate_sets

from multimodal.data.source import Source
from multimodal.evaluation.report.attention_examples import examples
from multimodal.evaluation.run import build_sets
from multimodal.inference.checkpoint.load import build_model

BATCH = 16  # of 100 samples: four batches for one rank, three for the other


@pytest.fixture
def pieces(tmp_path, monkeypatch):
    """An untrained fusion, and a set that lacks every fourth reading of the sensor."""
    shards = write_sensor_shards(tmp_path / "shards", train=4, lacking=4)
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    with composed("+experiment=sensor_fusion", "fusion=merged", SENSOR[1]) as cfg:
        torch.manual_seed(0)
        transforms = instantiate(cfg.data.transforms, _convert_="all")
        return build_model(cfg), build_sets(cfg), transforms


def _on_a_rank(rank: int, folder: Path) -> None:
    model, sets, transforms = torch.load(folder / "pieces.pt", weights_only=False)
    fused: list[int] = []
    model.register_forward_hook(lambda module, given, batch: fused.append(len(batch.sample_ids)))
    found = evaluate_sets(model, sets, transforms, {}, batch_size=BATCH).metrics()
    (folder / f"{rank}.json").write_text(json.dumps([found, fused]))
    if rank == 1:
        del transforms["image"]
    with pytest.raises(ValueError, match="has the modality 'image'"):
        evaluate_sets(model, sets, transforms, {})


@pytest.mark.slow
def test_ranks_share_the_tasks_and_find_what_one_finds(pieces, tmp_path):
    alone = json.loads(json.dumps(evaluate_sets(*pieces, {}, batch_size=BATCH).metrics()))
    task = alone["unseen"]["highest"]
    assert task["samples"] == 100
    assert set(task["alone"]) == set(task["without"]) == set(task["own"]) == {"image", "sensor"}
    assert set(task["attention"]) == {"image", "sensor"}
    torch.save(pieces, tmp_path / "pieces.pt")
    run_ranks(_on_a_rank, 2, tmp_path, tmp_path)
    (first, shares), (second, other_shares) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    )
    assert first == second == alone
    assert shares == [16, 16, 16, 4]
    assert other_shares == [16, 16, 16]


def test_drawn_samples_are_spread_through_the_set_and_no_others_are_read(pieces, monkeypatch):
    model, sets, transforms = pieces
    source = sets["unseen"].source
    decoded: list[int] = []
    decode = Source.decode

    def noted(self, index, *given, **named):
        decoded.append(index)
        return decode(self, index, *given, **named)

    monkeypatch.setattr(Source, "decode", noted)
    for count, places in ((4, [0, 33, 66, 99]), (6, [0, 19, 38, 57, 76, 95]), (1, [0]), (0, [])):
        decoded.clear()
        drawn = examples(model.eval(), source, transforms, count)
        assert [example.name for example in drawn] == [source.place(place).key for place in places]
        assert decoded == places
