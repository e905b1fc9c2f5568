"""A run with a joint embedding: resumed bit-exactly, loaded, and asked by both together."""

from __future__ import annotations

import pytest
import torch
from experiment_helpers import losses, train_here, weights, write_sensor_shards

import multimodal

WORDS = (
    "+joint@model.joint.both=gated", "model.joint.both.modalities=[image,sensor]",
    "model.joint.both.modality_dropout=0.3",
    "+pairs.both_image={anchor: [sensor, image], other: image}", "~evaluation",
    "trainer.val_check_interval=null", "trainer.limit_val_batches=0", "data.num_workers=0",
    "callbacks.checkpoint.every_n_train_steps=3", "callbacks.checkpoint.keep_last=9",
)  # fmt: skip


@pytest.mark.quick
def test_a_resumed_run_equals_the_whole_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSOR_SHARDS", str(write_sensor_shards(tmp_path / "shards")))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_here(whole, *WORDS, "trainer.max_steps=6")
    halfway = whole / "checkpoints" / "step=00000003.ckpt"
    train_here(parts, *WORDS, "trainer.max_steps=6", f"resume='{halfway}'")
    assert losses(parts) == {s: loss for s, loss in losses(whole).items() if s > 3}
    first, second = weights(whole, 6), weights(parts, 6)
    assert any(name.startswith("model.joint.image&sensor.fusion.") for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)

    model = multimodal.load(whole)
    picture, reading = torch.zeros(16, 16, 3, dtype=torch.uint8).numpy(), [torch.randn(12)]
    rows = model.embed(joint=True, image=[picture], sensor=reading)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(1))
    with pytest.raises(ValueError, match="as many of each modality"):
        model.embed(joint=True, image=[picture], sensor=[*reading, *reading])
