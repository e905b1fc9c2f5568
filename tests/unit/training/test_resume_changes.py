"""A run that is resumed with other settings: a longer schedule, other trained parameters."""

import csv

import pytest
import torch
from experiment_helpers import train_here, weights, write_sensor_shards

from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.file import CheckpointError

QUICK = (
    "~evaluation",
    "callbacks.checkpoint.every_n_train_steps=4",
    "trainer.val_check_interval=99",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def here(shards, monkeypatch, tmp_path):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    torch.set_num_threads(1)
    return tmp_path


def rates(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        return {int(r["step"]): float(r["train/lr"]) for r in rows if r["train/lr"]}


@pytest.mark.heavy
def test_a_longer_run_takes_every_step_at_the_new_schedules_rate(here, capsys):
    train_here(here / "whole", "trainer.max_steps=8", *QUICK)
    train_here(here / "cut", "trainer.max_steps=4", *QUICK)
    whole = rates(here / "whole")
    # Linear warm-up of round(0.1 * 8) = 1 step from half of the peak, then the cosine.
    assert whole[1] == pytest.approx(0.0025)
    assert whole[2] == pytest.approx(0.005)
    assert min(whole.values()) > 0
    train_here(here / "cut", "trainer.max_steps=8", *QUICK, "resume=auto")
    longer = rates(here / "cut")
    assert [longer[step] for step in (5, 6, 7, 8)] == [whole[step] for step in (5, 6, 7, 8)]
    before, after = weights(here / "cut", 4), weights(here / "cut", 8)
    assert not all(torch.equal(before[name], after[name]) for name in before)
    train_here(here / "cut", "trainer.max_steps=8", *QUICK, "resume=auto")
    said = capsys.readouterr().err
    assert "step 8 of trainer.max_steps=8 is reached already" in said
    with pytest.raises(CheckpointError, match=r"reached step 8, and trainer\.max_steps=6 asks"):
        train_here(here / "cut", "trainer.max_steps=6", *QUICK, "resume=auto")


@pytest.mark.heavy
def test_a_tower_is_unfrozen_and_frozen_on_resume(here, capsys):
    words = [*QUICK, "callbacks=ema", "resume=auto"]
    frozen = "model.towers.image.frozen"
    train_here(here, *words, "trainer.max_steps=4", f"{frozen}=true")
    train_here(here, *words, "trainer.max_steps=8", f"{frozen}=false", f"resume_allow=[{frozen}]")
    said = capsys.readouterr().err
    assert "are trained from here on, with fresh state (model.towers.image." in said
    name = next(
        n for n in weights(here, 4) if n.startswith("model.towers.image.") and "weight" in n
    )
    assert not torch.equal(weights(here, 4)[name], weights(here, 8)[name])
    content = store.read(here / "checkpoints" / "step=00000008.ckpt")
    assert name in content["ema"]
    names = [n for group in content["optimizer_names"] for n in group]
    state = content["optimizer_states"][0]["state"]
    steps = {name: int(state[index]["step"]) for index, name in enumerate(names)}
    assert steps[name] == 4
    assert {s for n, s in steps.items() if n.startswith("model.towers.sensor.")} == {8}
    train_here(here, *words, "trainer.max_steps=12", f"{frozen}=true", f"resume_allow=[{frozen}]")
    assert "are not trained any more (model.towers.image." in capsys.readouterr().err
    assert torch.equal(weights(here, 8)[name], weights(here, 12)[name])


def test_other_layers_are_rejected(here):
    train_here(here, *QUICK, "trainer.max_steps=4")
    words = ["trainer.max_steps=8", "embed_dim=8", "resume=auto", "resume_allow=[embed_dim,model]"]
    with pytest.raises(CheckpointError, match="weights of the checkpoint are not those"):
        train_here(here, *QUICK, *words)
