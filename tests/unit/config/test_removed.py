"""A parent's source, tower, pair or set is taken out by null."""

import pytest
from experiment_helpers import composed, train_here, write_sensor_shards
from omegaconf import OmegaConf

from multimodal.config import ConfigError, build, check, drop_removed
from multimodal.config.removed import without_removed

OWN = """# @package _global_
defaults: [clip_scratch, _self_]
data:
  sources:
    emoji: null
    mine:
      _target_: multimodal.data.Source
      manifest: samples://furniture.json
      modalities: {image: {member: icon.webp}, text: {member: json, key: name}}
  val_sources: {emoji: null}
evaluation:
  sets: {emoji_val: null, emoji_strict: null, emoji_unseen: null}
  in_training: null
"""


def test_a_parents_sources_are_replaced(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(OWN)
    with composed("+experiment=mine", f"hydra.searchpath=[file://{tmp_path}]") as cfg:
        check(cfg)
        drop_removed(cfg)
        check(cfg)
        assert list(cfg.data.sources) == ["furniture", "mine"]
        data = build(cfg, "data")
    assert list(data.sources) == ["furniture", "mine"]
    assert data.val_sources == {}


def test_a_run_trains_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSOR_SHARDS", str(write_sensor_shards(tmp_path / "shards", train=64)))
    again = "+data.sources.more={_target_: multimodal.data.Source, "
    again += f"manifest: '{tmp_path}/shards/measured.json', "
    again += "modalities: {image: {member: view.png}, sensor: {member: reading.npy}}}"
    train_here(
        tmp_path / "run", again, "data.sources.measured=null", "data.val_sources.measured=null",
        "trainer.max_steps=2", "~evaluation",
    )  # fmt: skip
    assert (tmp_path / "run" / "checkpoints" / "step=00000002.ckpt").exists()


def test_what_needs_it_is_still_refused():
    refused = pytest.raises(ConfigError, match="no tower 'text'")
    with composed("+experiment=clip_scratch", "model.towers.text=null") as cfg, refused:
        check(cfg)


def test_only_named_entries_are_dropped():
    tree = {
        "data": {"sources": {"a": None, "b": {"x": None}}, "val_sources": None},
        "evaluation": None, "pairs": {"p": None}, "seed": None,
    }  # fmt: skip
    left = {
        "data": {"sources": {"b": {"x": None}}, "val_sources": None},
        "evaluation": None, "pairs": {}, "seed": None,
    }  # fmt: skip
    assert without_removed(tree) == left
    assert tree["pairs"] == {"p": None}
    cfg = OmegaConf.create({**tree, "tasks": {"t": "${seed}", "u": "???"}})
    drop_removed(cfg)
    assert OmegaConf.to_container(cfg) == {**left, "tasks": {"t": "${seed}", "u": "???"}}
