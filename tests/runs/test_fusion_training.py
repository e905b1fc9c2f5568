"""A fusion trained as a whole: resuming, missing readings, an anchor's encoders, what is left."""

import json
import os

import pytest
import torch
from experiment_helpers import (
    ROOT,
    losses,
    run_training,
    train_here,
    weights,
    write_sensor_shards,
)
from PIL import Image
from rank_helpers import callback, lines

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


@pytest.mark.quick
def test_resuming_in_the_middle_of_an_epoch_continues_bit_exactly(here):
    every = ("callbacks.checkpoint.every_n_train_steps=3", "callbacks.checkpoint.keep_last=9")
    settings = (*SHORT, *every)  # an epoch has five steps
    fuse_here(here / "whole", *settings)
    middle = here / "whole" / "checkpoints" / "step=00000003.ckpt"
    fuse_here(here / "resumed", *settings, f"resume='{middle}'")
    whole = losses(here / "whole")
    assert losses(here / "resumed") == {step: x for step, x in whole.items() if step > 3}
    one, other = weights(here / "whole", 8), weights(here / "resumed", 8)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(w, weights(here / "whole", 3)[n]) for n, w in one.items())


def test_two_ranks_train_as_one_process_also_where_one_of_them_lacks_a_modality(tmp_path):
    shards = write_sensor_shards(tmp_path / "shards", lacking=2)
    common = ["+experiment=sensor_fusion", "~evaluation", "trainer.max_steps=12"]
    common += ["trainer.precision=32-true", "optimizer.lr=0.001", "tasks.highest.dropout=0"]
    common += ["model.modality_dropout=0", "allowed_packages=[fault_callbacks]"]
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=2"]
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}"
    for name, words in (("one", ["data.batch_size=4"]), ("two", ddp)):
        folder = tmp_path / name
        folder.mkdir()
        words = [*words, callback("NoteBatches", folder=str(folder)), f"hydra.run.dir={folder}"]
        run = run_training([*common, *words], shards, PYTHONPATH=path)
        assert run.returncode == 0, run.stderr[-3000:]
    noted = [lines(tmp_path / "two" / f"batches_{rank}.jsonl") for rank in range(2)]
    lacks = [[all(int(k[1:]) % 2 == 0 for k in line["keys"]) for line in rank] for rank in noted]
    assert sum(one != other for one, other in zip(*lacks, strict=True)) > 0
    single, double = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert sorted(single) == sorted(double) == list(range(1, 13))
    for step in single:
        assert float(double[step]) == pytest.approx(float(single[step]), abs=1e-5)
    one, two = weights(tmp_path / "one", 12), weights(tmp_path / "two", 12)
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=1e-4)


@pytest.mark.heavy
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
    with pytest.raises(AnchorError, match=r"encoder\.layers.*checkpoint has .*, this run has "):
        fuse_here(here / "other", anchor, "model.towers.image.encoder.channels=[8,32]", *SHORT)


def test_a_run_reports_each_modality_and_its_attention(here, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(here))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    logged = {}

    def log_image(self, key, images, step=None, **kwargs):
        logged[key] = (images, kwargs)

    monkeypatch.setattr("multimodal.training.loggers.wandb.WandbLogger.log_image", log_image)
    wandb = ("logger=wandb", "logger.wandb.offline=true", f"logger.wandb.save_dir={here}")
    fuse_here(here, *wandb, "+evaluation.every=30")
    scores = json.loads((here / "metrics.json").read_text())["unseen"]["highest"]
    assert scores["samples"] == 100
    assert scores["accuracy"] > 0.5 > scores["chance"]["accuracy"]
    assert set(scores["own"]) == set(scores["alone"]) == set(scores["without"])
    assert "attention" not in scores  # of two modalities each can only read the other
    # A quarter of the samples has no reading: the sensor's own scores are of the others.
    assert scores["without"]["image"] == scores["alone"]["sensor"]
    report = (here / "report.html").read_text()
    assert "highest: accuracy" in report
    assert "highest: sensor" in report
    drawn = sorted((here / "attention" / "unseen").glob("*.png"))
    assert drawn
    for path in drawn:
        assert path.name.endswith("_image.png")  # a sensor's one token is told in words
        assert Image.open(path).size == (128, 128)
    ((key, (images, kwargs)),) = logged.items()
    assert key == "attention/unseen"
    assert images == [str(path) for path in drawn]
    assert len(kwargs["caption"]) == len(images)
    header = (here / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"eval/unseen/highest/accuracy", "eval/unseen/highest/without/sensor/accuracy"} <= {
        *header
    }
