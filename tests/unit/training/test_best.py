"""The evaluation at a run's end is of its best checkpoint, unless the last is asked for."""

import json

import pytest
from experiment_helpers import train_here, write_sensor_shards

from multimodal.evaluation.run import evaluate_metrics
from multimodal.evaluation.trained_pairs import trained_pairs
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.inference.checkpoint.load import load_checkpoint
from multimodal.training import best
from multimodal.training.callbacks.checkpoint import Checkpoint

# The run gets better from step to step, and the lowest score is taken for the best.
WORDS = (
    "trainer.max_steps=12", "trainer.val_check_interval=4", "callbacks.checkpoint.mode=min",
    "callbacks.checkpoint.every_n_train_steps=100", "callbacks.checkpoint.keep_last=1",
)  # fmt: skip
BEST = "best by val/score"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(autouse=True)
def sensor(shards, monkeypatch):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))


def evaluated(folder, step):
    """The figures of a run's checkpoint, as anybody gets them."""
    loaded = load_checkpoint(store.steps(folder / "checkpoints")[step])
    pairs = trained_pairs(loaded.cfg)
    return evaluate_metrics(loaded.model, loaded.cfg, pairs, loaded.temperatures)


def figures(folder):
    content = json.loads((folder / "metrics.json").read_text())["unseen"]
    return {
        f"unseen/{task}/{name}": value
        for task in ("image_to_sensor", "sensor_to_image")
        for name, value in content[task].items()
        if name.startswith("r@")
    }


EMA = ("callbacks=ema", "callbacks.ema.decay=0.9")


@pytest.mark.heavy
@pytest.mark.parametrize("more", [(), pytest.param(EMA, marks=pytest.mark.slow)])
def test_the_best_is_evaluated(tmp_path, capsys, more):
    train_here(tmp_path, *more, *WORDS)
    first, last = sorted(store.steps(tmp_path / "checkpoints"))
    assert first < last == 12
    found = figures(tmp_path)
    assert found == {name: evaluated(tmp_path, first)[name] for name in found}
    assert found != {name: evaluated(tmp_path, last)[name] for name in found}
    shown = capsys.readouterr().out
    assert f"at step {first})\nit is evaluated, not the last step, 12 (callbacks" in shown
    assert f"<dd>step {first} of 12, {BEST}</dd>" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_the_last_is_evaluated_where_it_is_asked_for(tmp_path, capsys):
    train_here(tmp_path, *WORDS, "callbacks.checkpoint.evaluate=last")
    found = figures(tmp_path)
    assert found == {name: evaluated(tmp_path, 12)[name] for name in found}
    assert "it is evaluated" not in capsys.readouterr().out
    assert "<dd>last step, 12</dd>" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_a_best_checkpoint_that_cannot_be_read_is_said(tmp_path, monkeypatch, capsys):
    def damaged(path):
        raise CheckpointError(f"{path} is damaged")

    monkeypatch.setattr(best.store, "read", damaged)
    train_here(tmp_path, *WORDS)
    monkeypatch.undo()
    shown = capsys.readouterr()
    assert "is damaged; the last weights are evaluated" in shown.err
    assert "<dd>last step, 12</dd>" in (tmp_path / "report.html").read_text()


def test_a_choice_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"checkpoint\.evaluate=first: expected best or last"):
        Checkpoint("x", None, 1, "", evaluate="first")
