"""A schedule-free run evaluates and saves the average of its weights."""

from functools import partial

import pytest
import torch
from experiment_helpers import train_here, write_sensor_shards

from multimodal.config.problems import ConfigError
from multimodal.evaluation.results import Results
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.load import load_model
from multimodal.inference.checkpoint.weights import STATE

FREE = ("optimizer=schedule_free", "scheduler=constant", "optimizer.betas=[0.8,0.9]")
EVERY = ("callbacks.checkpoint.every_n_train_steps=1", "callbacks.checkpoint.keep_last=9")
OPTIMIZERS = {
    "adamw": [],
    "muon": ["optimizer=muon"],
    "lion": ["optimizer=lion"],
    "adafactor": ["optimizer=adafactor"],
    "sgd": ["optimizer=sgd"],
    "schedule_free": [*FREE],
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def here(shards, monkeypatch, tmp_path):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    torch.set_num_threads(1)
    return tmp_path


def equal(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def test_every_evaluation_uses_the_average(here, monkeypatch):
    seen = {}

    def note(step, model, *_):
        seen[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return {} if step else Results()

    monkeypatch.setattr("multimodal.cli.train.evaluate_metrics", partial(note, 2))
    monkeypatch.setattr("multimodal.cli.train.evaluate_run", partial(note, None))
    words = (
        "+evaluation.every=2", "trainer.val_check_interval=2", "trainer.max_steps=3",
        "callbacks.checkpoint.evaluate=last",
    )  # fmt: skip
    train_here(here / "run", *FREE, *EVERY, *words)
    for step, at in ((2, 2), (None, 3)):
        path = here / "run" / "checkpoints" / f"step={at:08d}.ckpt"
        saved = store.read(path)
        states = [s for s in saved["optimizer_states"][0]["state"].values() if "z" in s]
        assert states
        weights = {n.removeprefix("model."): t for n, t in saved["state_dict"].items()}
        average = {n.removeprefix("model."): t for n, t in saved[STATE].items()}
        z = {tuple(s["z"].shape): s["z"] for s in states}
        moved = [n for n, x in average.items() if not torch.equal(x, weights[n])]
        assert moved
        for name in moved:  # y = 0.2 z + 0.8 x
            y, x = weights[name], average[name]
            if sum(tuple(s["z"].shape) == tuple(y.shape) for s in states) == 1:
                torch.testing.assert_close(y, 0.2 * z[tuple(y.shape)] + 0.8 * x)
        found = {n: t for n, t in seen[step].items() if n in average}
        assert equal(found, {n: t for n, t in average.items() if n in found})
        model, _ = load_model(path)
        loaded = {n: t for n, t in model.state_dict().items() if n in average}
        assert equal(loaded, {n: t for n, t in average.items() if n in loaded})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("muon", "schedule_free") else [pytest.mark.slow])
        for name in OPTIMIZERS
    ],
)
def test_every_optimizer_resumes_to_the_bit(here, name):
    words = (*OPTIMIZERS[name], *EVERY, "~evaluation", "trainer.max_steps=4")
    train_here(here / "whole", *words)
    middle = here / "whole" / "checkpoints" / "step=00000002.ckpt"
    train_here(here / "resumed", *words, f"resume='{middle}'")
    whole, resumed = (
        store.read(here / run / "checkpoints" / "step=00000004.ckpt")
        for run in ("whole", "resumed")
    )
    assert equal(resumed["state_dict"], whole["state_dict"])
    start = store.read(here / "whole" / "checkpoints" / "step=00000001.ckpt")
    assert not equal(start["state_dict"], whole["state_dict"])
    assert equal(resumed.get(STATE, {}), whole.get(STATE, {}))
    found, expected = (run["optimizer_states"][0]["state"] for run in (resumed, whole))
    assert found.keys() == expected.keys()
    for place, state in expected.items():
        for key, value in state.items():
            same = found[place][key]
            assert torch.equal(same, value) if torch.is_tensor(value) else same == value


@pytest.mark.heavy
def test_a_stable_phase_is_cooled_down_from_a_checkpoint(here):
    stable = ("scheduler=warmup_stable_decay", "trainer.log_every_n_steps=1", *EVERY, "~evaluation")
    train_here(
        here / "long", *stable, "trainer.max_steps=6", "scheduler.decay_steps=1",
        "scheduler.shape=linear",
    )  # fmt: skip
    middle = here / "long" / "checkpoints" / "step=00000004.ckpt"
    train_here(
        here / "cooled", *stable, f"resume='{middle}'", "trainer.max_steps=8",
        "scheduler.decay_steps=4", "scheduler.shape=linear",
    )  # fmt: skip
    rows = (here / "cooled" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/lr")
    rates = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    peak = rates[0]
    assert rates == pytest.approx([peak, peak * 0.75, peak * 0.5, peak * 0.25])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer=schedule_free"], "set scheduler=constant"),
        ([*FREE, "callbacks=ema"], "averages the weights already"),
        (["optimizer._target_=torch.optim.Muon"], "optimizer=muon gives all else to AdamW"),
    ],
)
def test_what_does_not_go_together_is_refused(here, words, message):
    with pytest.raises(ConfigError, match=message):
        train_here(here, *words)
