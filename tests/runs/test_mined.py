"""Mined negatives, from one run to the next: they tell near twins apart."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from multimodal.cli.packing.mine import mine
from multimodal.config import config_dir
from multimodal.core.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark" / "mined.py"


def test_twins_are_told_apart_by_mined_negatives():
    spec = importlib.util.spec_from_file_location("mined", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.main([])
    recall, twin = found["in-batch"]
    assert twin < 0.85
    for name in ("mined, listed=batch", "mined, listed=anchor"):
        assert found[name][1] > twin + 0.1
        assert found[name][0] > recall + 0.1


@pytest.mark.quick
def test_a_table_of_another_kind_is_refused():
    cfg = OmegaConf.load(config_dir() / "mine.yaml")
    cfg.checkpoint, cfg.input, cfg.output = "a.ckpt", "a.json", "a.parquet"
    with pytest.raises(UserError, match=r"ends in \.npz"):
        mine(cfg)
