"""A run with self-distillation: resumed bit-exactly, and loaded without what only trained it."""

from __future__ import annotations

import pytest
import torch
from experiment_helpers import losses, train_here, weights, write_sensor_shards

import multimodal

WORDS = (
    "self_distillation=local", "self_distillation.modalities=[image]",
    "self_distillation.local.count=2", "self_distillation.momentum=0.5",
    "self_distillation.head={prototypes: 16, hidden: 8, bottleneck: 4}", "~evaluation",
    "trainer.val_check_interval=null", "trainer.limit_val_batches=0", "data.num_workers=0",
    "callbacks.checkpoint.every_n_train_steps=3", "callbacks.checkpoint.keep_last=9",
)  # fmt: skip


@pytest.mark.heavy
def test_a_resumed_run_of_it_equals_the_whole_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSOR_SHARDS", str(write_sensor_shards(tmp_path / "shards")))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_here(whole, *WORDS, "trainer.max_steps=6")
    halfway = whole / "checkpoints" / "step=00000003.ckpt"
    train_here(parts, *WORDS, "trainer.max_steps=6", f"resume='{halfway}'")
    assert losses(parts) == {s: loss for s, loss in losses(whole).items() if s > 3}
    between, first, second = weights(whole, 3), weights(whole, 6), weights(parts, 6)
    assert all(torch.equal(first[name], second[name]) for name in first)
    moved = [name for name in first if not torch.equal(first[name], between[name])]
    for part in ("teachers.image.module.encoder.", "teachers.image.module.local.",
                 "heads.image.local.", "centre_image_local"):  # fmt: skip
        assert any(name.startswith(f"self_distiller.{part}") for name in moved), part

    model = multimodal.load(whole)
    assert not any("distiller" in name for name in model.model.state_dict())
    rows = model.embed(image=[torch.zeros(16, 16, 3, dtype=torch.uint8).numpy()])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(1))
