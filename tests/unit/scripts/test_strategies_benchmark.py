"""The benchmark of what every choice learns in a minute."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from multimodal.objectives.interfaces import compatible

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "strategies", ROOT / "scripts" / "benchmark" / "strategies.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_loss_and_every_strategy_is_in_it(script):
    choices = {
        group: {
            path.stem: None if path.stem == "filtered" else instantiate(OmegaConf.load(path))
            for path in (ROOT / "configs" / group).glob("*.yaml")
        }
        for group in ("loss", "negatives")
    }
    expected = {(loss, "in_batch") for loss in choices["loss"]} | {
        (loss, name)
        for loss in ("info_nce", "triplet")
        for name, strategy in choices["negatives"].items()
        if compatible(choices["loss"][loss], strategy) is None
    }
    assert set(script.GRID) == expected
    assert len(script.GRID) == len(expected)


def test_table(script):
    common = {"steps": 3, "seconds": 60.0, "chance": 0.001, "gallery": 1000}
    runs = [
        {"loss": loss, "negatives": "in_batch", "seed": seed, **common}
        | {"image_to_text": score, "text_to_image": score + 0.002}
        for seed, loss, score in (
            (1, "info_nce", 0.004),
            (0, "info_nce", 0.002),
            (0, "triplet", 0.001),
            (1, "triplet", 0.001),
        )
    ]
    rows = script.table(runs).splitlines()
    assert "| `info_nce` | `in_batch` | 0.30, 0.50 | 0.40 | 4.0 | 1.0 | 60 |" in rows
    assert "| `triplet` | `in_batch` | 0.20, 0.20 | 0.20 | 2.0 | 0.5 | 60 |" in rows
    assert rows[-1] == "In percent, among 1000; chance is 0.10."


@pytest.mark.slow
def test_runs_and_resumes(script, tmp_path, monkeypatch, capsys):
    path = tmp_path / "runs.jsonl"
    monkeypatch.setattr(script, "GRID", [("info_nce", "in_batch"), ("triplet", "hard")])
    monkeypatch.setattr(script, "BATCH", 16)
    monkeypatch.setattr(sys, "argv", ["x", "--steps", "2", "--seeds", "0", "--output", str(path)])
    script.main()
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    assert [run["loss"] for run in runs] == ["info_nce", "triplet"]
    assert all(0 <= run["image_to_text"] <= 1 and run["gallery"] > 1000 for run in runs)
    path.write_text(path.read_text().splitlines()[0] + "\n")
    monkeypatch.setattr(script, "measure", lambda *_: {**runs[1], "seconds": -1.0})
    script.main()
    assert [json.loads(line)["seconds"] for line in path.read_text().splitlines()][1:] == [-1.0]
    assert "| `triplet` | `hard` |" in capsys.readouterr().out
