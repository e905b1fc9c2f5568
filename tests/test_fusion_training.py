"""A fusion trained as a whole: its encoders from a contrastive run."""

import pytest
import torch
from experiment_helpers import train_here, weights, write_sensor_shards

from multimodal.training.anchor import AnchorError

SHORT = ("trainer.max_steps=8", "trainer.val_check_interval=4", "~evaluation")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"), lacking=4)


@pytest.fixture
def here(shards, monkeypatch, tmp_path):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    torch.set_num_threads(1)
    return tmp_path


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("complete"))


def fuse_here(folder, *words):
    train_here(folder, *words, experiment="sensor_fusion")


def test_encoders_from_a_contrastive_checkpoint_of_ours(here, complete, monkeypatch):
    monkeypatch.setenv("SENSOR_SHARDS", str(complete))  # pairs compare what is there
    train_here(here / "pairs", "trainer.max_steps=3", "~evaluation")
    path = here / "pairs" / "checkpoints" / "step=00000003.ckpt"
    anchor = f"anchor={{checkpoint: '{path}', experiment: null, towers: [image], folder: kept}}"
    frozen = "model.towers.image.frozen=true"
    fuse_here(here / "run", anchor, frozen, "trainer.max_steps=3", "~evaluation")
    before, after = weights(here / "pairs", 3), weights(here / "run", 3)
    encoder = [n for n in before if n.startswith("model.towers.image.encoder.")]
    assert encoder
    assert all(torch.equal(before[name], after[name]) for name in encoder)
    assert any(n.startswith("model.towers.image.head.") for n in before)
    assert not any(n.startswith("model.towers.image.head.") for n in after)
    sensor = [n for n in after if n.startswith("model.towers.sensor.encoder.")]
    assert any(not torch.equal(before[name], after[name]) for name in sensor)
    with pytest.raises(AnchorError, match=r"towers\.image\.encoder\.layers.*there, .* here"):
        fuse_here(here / "other", anchor, "model.towers.image.encoder.channels=[8,32]", *SHORT)
