"""The moving average of the weights: what it is, who uses it, and how to have the others."""

import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from experiment_helpers import ROOT, losses, train_here, write_sensor_shards
from search_helpers import Flat, Head

from multimodal.evaluation.results import Results
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.inference.checkpoint.load import load_model
from multimodal.inference.checkpoint.weights import STATE
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.training.callbacks.ema import WeightAverage

EMA = ("callbacks=ema", "callbacks.ema.decay=0.5", "callbacks.ema.warmup=false")
EVERY = ("callbacks.checkpoint.every_n_train_steps=1", "callbacks.checkpoint.keep_last=9")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def here(shards, monkeypatch, tmp_path):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    torch.set_num_threads(1)
    return tmp_path


def contents(folder):
    return {step: store.read(path) for step, path in store.steps(folder / "checkpoints").items()}


def equal(found, expected):
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def of_the_model(state):
    return {n.removeprefix("model."): t for n, t in state.items() if n.startswith("model.")}


def test_the_average_equals_a_manual_one_and_is_resumed(here):
    words = (*EMA, *EVERY, "~evaluation", "trainer.max_steps=4")
    train_here(here / "whole", *words)
    whole = contents(here / "whole")
    assert sorted(whole) == [1, 2, 3, 4]
    for step in (2, 3, 4):
        for name, average in whole[step][STATE].items():
            before, weights = whole[step - 1][STATE][name], whole[step]["state_dict"][name]
            torch.testing.assert_close(average, 0.5 * before + 0.5 * weights)
    assert not equal(whole[4]["state_dict"], whole[4][STATE])
    middle = here / "whole" / "checkpoints" / "step=00000002.ckpt"
    train_here(here / "resumed", *words, f"resume='{middle}'")
    resumed = contents(here / "resumed")[4]
    assert resumed["ema_steps"] == 4
    assert equal(resumed[STATE], whole[4][STATE])
    assert equal(resumed["state_dict"], whole[4]["state_dict"])


@pytest.fixture
def evaluated(monkeypatch):
    """The models that training gives to its evaluations: step (None at the end) -> state dict."""
    seen = {}

    def note(step, model, *_):
        seen[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return {} if step else Results()

    monkeypatch.setattr("multimodal.cli.train.evaluate_metrics", partial(note, 2))
    monkeypatch.setattr("multimodal.cli.train.evaluate_run", partial(note, None))
    return seen


@pytest.mark.heavy
def test_every_evaluation_uses_it_and_training_does_not(here, evaluated, capsys):
    words = (
        *EVERY, "+evaluation.every=2", "trainer.val_check_interval=2", "trainer.max_steps=3",
        "callbacks.checkpoint.evaluate=last",
    )  # fmt: skip
    train_here(here / "with", *EMA, *words)
    output = capsys.readouterr().err
    assert "validation and evaluation use the moving average of the weights" in output
    assert "the evaluation of the run uses the moving average of the weights" in output
    saved = contents(here / "with")
    for step, at in ((2, 2), (None, 3)):
        average = of_the_model(saved[at][STATE])
        assert equal(evaluated[step], average)
        assert not equal(of_the_model(saved[at]["state_dict"]), average)
    train_here(here / "without", *words)
    assert losses(here / "with") == losses(here / "without")
    assert equal(contents(here / "without")[3]["state_dict"], saved[3]["state_dict"])
    assert equal(evaluated[None], of_the_model(saved[3]["state_dict"]))


@pytest.mark.slow
def test_the_weights_themselves_can_be_asked_for(here, evaluated, capsys):
    words = (*EMA, *EVERY, "trainer.max_steps=2")
    train_here(here / "raw", *words, "callbacks.ema.evaluate=false")
    assert "uses the weights, not their average" in capsys.readouterr().err
    (raw,) = [c for step, c in contents(here / "raw").items() if step == 2]
    assert equal(evaluated[None], of_the_model(raw["state_dict"]))
    train_here(here / "average", *words)

    for run, own in (("raw", "raw"), ("average", "average")):
        path = here / run / "checkpoints" / "step=00000002.ckpt"
        content = store.read(path)
        kinds = {"raw": content["state_dict"], "average": content[STATE]}
        for choice in ("raw", "average", None):
            model, _ = load_model(path, weights=choice)
            assert equal(model.state_dict(), of_the_model(kinds[choice or own]))
            said = "the weights themselves are" if own == "raw" else "the moving average"
            assert choice is not None or said in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="weights=mean: expected average or raw"):
        load_model(path, weights="mean")


def test_an_average_that_was_not_kept_cannot_be_had(here):
    train_here(here, "~evaluation", "trainer.max_steps=1")
    path = here / "checkpoints" / "step=00000001.ckpt"
    assert load_model(path)
    with pytest.raises(CheckpointError, match="holds no moving average"):
        load_model(path, weights="average")


class Shared(pl.LightningModule):
    """Two modalities with one tower: a state dict has its weights by both names."""

    def __init__(self):
        super().__init__()
        self.model = EmbeddingModel({"image": Tower(Flat(0, 8), Head), "video": "image"})


def test_a_save_in_a_validation_has_the_weights_themselves_in_shared_towers_too():
    module, average = Shared(), WeightAverage(decay=0.5)
    average.on_fit_start(None, module)
    learned = {name: tensor + 1 for name, tensor in module.state_dict().items()}
    began = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict(learned)
    with average.in_use(module):
        checkpoint = {"state_dict": module.state_dict()}
        assert equal(checkpoint["state_dict"], began)
        average.on_save_checkpoint(None, module, checkpoint)
    assert equal(checkpoint["state_dict"], learned)
    assert equal(checkpoint[STATE], began)
    assert {"model.towers.image.encoder.weight", "model.towers.video.encoder.weight"} <= (
        checkpoint[STATE].keys()
    )
    assert equal(module.state_dict(), learned)


@pytest.mark.slow
def test_the_programs_take_the_average_or_the_weights_themselves(here, shards):
    train_here(here / "run", *EMA[:1], "callbacks.ema.decay=0.9999", *EMA[2:])
    path = here / "run" / "checkpoints" / "step=00000060.ckpt"
    env = {**os.environ, "SENSOR_SHARDS": str(shards)}

    def run(name, *words):
        command = [sys.executable, str(ROOT / "scripts" / name), f"checkpoint='{path}'", *words]
        done = subprocess.run(
            command, env=env, cwd=here, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    found, tables = {}, {}
    for choice in ("null", "raw"):
        word = f"weights={choice}"
        said = run("evaluate.py", word, f"hydra.run.dir={here / choice}")
        assert ("the moving average of the weights is used" in said) == (choice == "null")
        found[choice] = json.loads((here / choice / "metrics.json").read_text())["unseen"]
        output = here / f"{choice}.npy"
        run("embed.py", word, f"input={shards}/measured.json", "split=test", f"output={output}")
        assert not (here / "run.json").exists()
        tables[choice] = np.load(output)
    direction = "image_to_sensor"
    assert found["raw"][direction]["r@1"] > 3 * found["null"][direction]["r@1"]  # hardly learned
    assert tables["raw"].shape == tables["null"].shape
    assert not np.allclose(tables["raw"], tables["null"])
