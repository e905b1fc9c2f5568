"""Towers from an earlier run: given, trained first, frozen, or not fitting."""

import pytest
import torch
from experiment_helpers import run_training, train_here, weights, write_sensor_shards
from omegaconf import OmegaConf

from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.training.anchor import AnchorError, forwarded, of_all_devices

SHORT = ("trainer.max_steps=3", "~evaluation")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def here(shards, monkeypatch, tmp_path):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    return tmp_path


def anchored(checkpoint, *more):
    anchor = f"{{checkpoint: '{checkpoint}', experiment: sensor, towers: [image], folder: kept}}"
    return (*SHORT, f"anchor={anchor}", "model.towers.image.frozen=true", *more)


def towers(state, name):
    return {key: value for key, value in state.items() if key.startswith(f"model.towers.{name}.")}


def test_a_frozen_tower_keeps_the_anchor_s_weights_bit_exactly(here):
    train_here(here / "anchor", *SHORT)
    anchor = here / "anchor" / "checkpoints" / "step=00000003.ckpt"
    train_here(here / "run", *anchored(anchor), "seed=5")
    before, after = weights(here / "anchor", 3), weights(here / "run", 3)
    image = towers(before, "image")
    assert image
    assert all(torch.equal(value, after[key]) for key, value in image.items())
    sensor = towers(before, "sensor")
    assert any(not torch.equal(value, after[key]) for key, value in sensor.items())


def test_a_tower_of_another_shape_is_rejected_tensor_by_tensor(here):
    train_here(here / "anchor", *SHORT)
    anchor = here / "anchor" / "checkpoints" / "step=00000003.ckpt"
    with pytest.raises(
        AnchorError, match=r"towers.image.head.*: checkpoint has \[16, 32\], this run has \[8, 32\]"
    ):
        train_here(here / "run", *anchored(anchor, "embed_dim=8"))
    with pytest.raises(
        AnchorError, match=r"data.transforms.image.mean: checkpoint has .*, this run has .*"
    ):
        train_here(here / "run", *anchored(anchor, "data.transforms.image.mean=[0.5,0.5,0.5]"))


def test_a_missing_anchor_is_named_before_data_or_weights(here, monkeypatch):
    monkeypatch.setenv("SENSOR_SHARDS", str(here / "nowhere"))
    with pytest.raises(CheckpointError, match=r"no checkpoint at /nowhere/anchor\.ckpt"):
        train_here(here / "run", *anchored("/nowhere/anchor.ckpt"))


def test_where_and_how_to_train_is_forwarded_and_nothing_else():
    given = [
        "+experiment=imagebind_scratch",
        "trainer=ddp",
        "trainer.devices=2",
        "+debug=fast",
        "seed=3",
    ]
    assert forwarded(given) == ["trainer=ddp", "trainer.devices=2", "+debug=fast"]


@pytest.mark.heavy
def test_an_anchor_is_trained_first_and_kept_for_later_runs(shards, tmp_path):
    anchor = f"{{checkpoint: null, experiment: sensor, towers: [image], folder: {tmp_path}/kept}}"
    words = ["+experiment=sensor", "debug=fast", f"anchor={anchor}"]
    first = run_training([*words, f"hydra.run.dir={tmp_path}/first"], shards)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "training the sample anchor (+experiment=sensor) first" in first.stderr
    (kept,) = (tmp_path / "kept").iterdir()
    path = store.newest(kept / "checkpoints")
    assert f"anchor: {path}" in first.stderr
    second = run_training([*words, f"hydra.run.dir={tmp_path}/second"], shards)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "training the sample anchor" not in second.stderr
    assert f"anchor: {path}" in second.stderr
    assert list((tmp_path / "kept").iterdir()) == [kept]


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"devices": 1}, 236), ({"devices": "auto"}, 236), ({"devices": 2}, 118),
        ({"devices": 2, "num_nodes": 2}, 59), ({"devices": 500}, 1),
    ],
)  # fmt: skip
def test_the_anchors_global_batch_is_that_of_its_experiment(trainer, expected):
    assert of_all_devices(236, OmegaConf.create(trainer)) == expected
