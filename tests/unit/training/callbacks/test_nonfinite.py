"""Non-finite numbers: no rank applies them, too many in a row end the run, spikes are reported."""

import json

import pytest
import torch
from experiment_helpers import train_here, write_sensor_shards
from rank_helpers import Ranks, callback, lines

from multimodal.inference.checkpoint import store
from multimodal.training.callbacks.loss_spikes import LossSpikes
from multimodal.training.callbacks.nonfinite import NonFiniteError, SkipNonFinite


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def here(shards, monkeypatch, tmp_path):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    torch.set_num_threads(1)
    return tmp_path


OWN = "allowed_packages=[fault_callbacks]"


def sums(path):
    return {line["step"]: line["sums"] for line in lines(path)}


def test_a_nan_on_one_rank_leaves_the_weights_of_all_as_they_were(shards, tmp_path):
    nan = callback("NotFinite", folder=str(tmp_path), steps=[2, 3], rank=1)
    note = callback("NoteWeights", folder=str(tmp_path))
    with Ranks(["trainer.max_steps=6", nan, note], tmp_path, shards) as run:
        assert run.codes(300) == [0, 0], run.output()
        assert "a gradient is not finite" in run.outputs[0].read_text()
    assert (tmp_path / "nan_2").exists()  # rank 0 alone would have had nothing against the step
    for rank in (0, 1):
        seen = sums(tmp_path / f"weights_{rank}.jsonl")
        assert seen[2] == seen[3] == seen[4]
        assert seen[1] != seen[2]
        assert seen[4] != seen[5]
    assert sums(tmp_path / "weights_0.jsonl") == sums(tmp_path / "weights_1.jsonl")


def test_a_row_of_them_ends_the_run_with_keys_and_losses(here, decided):
    nan = callback("NotFinite", folder=str(here), steps=[2, 3, 4, 5])
    words = ("trainer.max_steps=9", "~evaluation", OWN, nan, "callbacks.nonfinite.max_nonfinite=3")
    with pytest.raises(NonFiniteError, match="3 steps in a row, up to step 5"):
        train_here(here, *words)
    report = json.loads((here / "nonfinite.json").read_text())
    assert report["step"] == 5
    ((batch,),) = report["ranks"]
    assert len(batch["keys"]) == 32
    assert batch["keys"][0][0] in "ab"
    assert "loss/image_sensor" in batch["metrics"]


@pytest.fixture(params=["by the host", "by the kernel"])
def decided(request, monkeypatch):
    """As on a CPU, and as on a GPU: the kernel leaves a step out, the host hears of it later."""
    if request.param == "by the kernel":
        monkeypatch.setattr(SkipNonFinite, "decided_on", ("cpu",))
    return request.param


def test_both_ways_leave_out_the_same_steps(here, monkeypatch, capsys):
    states, said, decisions, decides = [], [], [], SkipNonFinite._decides
    monkeypatch.setattr(
        SkipNonFinite, "_decides", lambda *given: decisions.append(decides(*given)) or decisions[-1]
    )
    nan = callback("NotFinite", folder=str(here), steps=[1, 2, 5])
    for name, devices in (("host", ()), ("kernel", ("cpu",))):
        monkeypatch.setattr(SkipNonFinite, "decided_on", devices)
        words = ("trainer.max_steps=6", "~evaluation", OWN, nan,
                 "callbacks.checkpoint.every_n_train_steps=3")  # fmt: skip
        train_here(here / name, *words)
        said.append([line for line in capsys.readouterr().err.splitlines() if "WARN" in line])
        found = [store.read(here / name / "checkpoints" / f"step={step:08d}.ckpt")
                 for step in (3, 6)]  # fmt: skip
        states.append([
            ({k: t.clone() for k, t in each["state_dict"].items()}, each["optimizer_states"],
             [s for s in each["callbacks"].values() if "skipped" in s])
            for each in found
        ])  # fmt: skip
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert states[0][0][2] == [{"in_a_row": 2, "skipped": 2}]
    assert states[0][1][2] == [{"in_a_row": 1, "skipped": 3}]
    assert decisions == [False] * 6 + [True] * 6
    assert said[0] == said[1]
    assert len(said[0]) == 3
    assert "step 6: a gradient is not finite" in said[0][2]


def test_finite_steps_in_between_reset_the_count(here, decided):
    nan = callback("NotFinite", folder=str(here), steps=[1, 2, 4, 5])
    words = ("trainer.max_steps=8", "~evaluation", OWN, nan, "callbacks.nonfinite.max_nonfinite=3")
    train_here(here, *words)
    last = store.read(here / "checkpoints" / "step=00000008.ckpt")
    (state,) = [s for s in last["callbacks"].values() if "skipped" in s]
    assert state == {"in_a_row": 0, "skipped": 4}


def test_a_jump_of_the_loss_is_a_spike_and_its_decline_is_not(tmp_path):
    spikes = LossSpikes(deviations=6.0, window=20, warmup_steps=10, folder=str(tmp_path))
    values = [3.0 - 0.01 * i + 0.02 * (-1) ** i for i in range(100)]
    values[60] = 4.0
    values[70] = float("nan")
    assert [i for i, value in enumerate(values) if spikes.update(value)] == [60]
    again = LossSpikes(6.0, 20, 10, str(tmp_path))
    again.load_state_dict(spikes.state_dict())
    assert again.update(9.0)
    assert not again.update(2.0)
