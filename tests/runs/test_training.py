"""Training as a whole: learning, resuming, seeds, debugging; on an experiment made of YAML only."""

import csv
import json
import math
import re

import pytest
import torch
from experiment_helpers import losses, run_training, train_here, weights, write_sensor_shards
from known_lines import noise

SHORT = ("trainer.max_steps=8", "callbacks.checkpoint.every_n_train_steps=4", "~evaluation")
KEEP = "callbacks.checkpoint.keep_last=9"


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def here(shards, monkeypatch, tmp_path):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    torch.set_num_threads(1)
    return tmp_path


@pytest.mark.heavy
def test_a_made_up_sensor_needs_yaml_only(shards, tmp_path):
    run = run_training(["+experiment=sensor", f"hydra.run.dir={tmp_path}"], shards)
    assert run.returncode == 0, run.stderr[-3000:]
    scores = json.loads((tmp_path / "metrics.json").read_text())["unseen"]
    for direction in ("image_to_sensor", "sensor_to_image"):
        assert scores[direction]["gallery"] == 100
        assert scores[direction]["r@1"] > 5 * scores[direction]["chance"]["r@1"]
    assert str(tmp_path / "report.html") in run.stdout
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / ".hydra" / "config.yaml").exists()
    seen = losses(tmp_path)
    assert sorted(seen) == list(range(1, 61))
    # Nothing but what its user wants: no library's remarks, neither here nor in the log.
    progress = re.compile(r"step \d+/60  loss \S+  [\d,]+ samples/s  \S+ min left")
    strange = [line for line in run.stderr.splitlines() if line.strip()]
    assert [line for line in strange if not progress.match(line.strip())] == []
    assert (tmp_path / "train.log").read_text() == ""


@pytest.mark.quick
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resuming_continues_bit_exactly(here, workers):
    settings = (*SHORT, KEEP, f"data.num_workers={workers}")
    train_here(here / "whole", *settings)
    middle = here / "whole" / "checkpoints" / "step=00000004.ckpt"
    train_here(here / "resumed", *settings, f"resume='{middle}'")
    assert losses(here / "resumed") == {
        step: loss for step, loss in losses(here / "whole").items() if step > 4
    }
    whole, resumed = weights(here / "whole", 8), weights(here / "resumed", 8)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(w, weights(here / "whole", 4)[n]) for n, w in whole.items())


@pytest.mark.quick
def test_auto_resume_takes_the_newest_checkpoint_and_keeps_one_row_per_step(here):
    train_here(here / "run", *SHORT, KEEP)
    before = losses(here / "run")
    (here / "run" / "checkpoints" / "step=00000008.ckpt").unlink()  # as if killed after step 4
    train_here(here / "run", *SHORT, KEEP, "resume=auto")
    assert losses(here / "run") == before
    rows = (here / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 8


def test_equal_seeds_are_equal_runs_and_others_are_not(here):
    train_here(here / "a", *SHORT, "seed=1")
    train_here(here / "b", *SHORT, "seed=1")
    train_here(here / "c", *SHORT, "seed=2")
    assert losses(here / "a") == losses(here / "b")
    assert losses(here / "a")[1] != losses(here / "c")[1]


def test_two_runs_of_the_same_command_are_bit_identical(shards, tmp_path):
    """Threads are pinned to one; augmentation is on, and two workers load."""
    words = ["+experiment=sensor", "trainer.max_steps=100", "data.num_workers=2", "~evaluation"]
    for name in ("a", "b"):
        run = run_training([*words, f"hydra.run.dir={tmp_path / name}"], shards)
        assert run.returncode == 0, run.stderr[-3000:]
    first, second = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert sorted(first) == list(range(1, 101))
    assert first == second
    one, other = weights(tmp_path / "a", 100), weights(tmp_path / "b", 100)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_micro_batches_do_not_change_the_loss(here):
    train_here(here / "whole", *SHORT)
    train_here(here / "pieces", *SHORT, "micro_batch_size=5")
    whole, pieces = losses(here / "whole"), losses(here / "pieces")
    for step in whole:
        assert float(whole[step]) == pytest.approx(float(pieces[step]), rel=1e-4)


def test_overfitting_one_batch_comes_close_to_zero(here):
    train_here(here, "+debug=overfit", "~evaluation")
    seen = {step: float(loss) for step, loss in losses(here).items()}
    assert seen[min(seen)] > 0.5 * math.log(32)
    assert seen[max(seen)] < 0.1


def test_profile_leaves_a_trace_and_a_table(shards, tmp_path):
    words = ["+experiment=sensor", "debug=profile", "~evaluation", f"hydra.run.dir={tmp_path}"]
    run = run_training(words, shards)
    assert run.returncode == 0, run.stderr[-3000:]
    traces = list(tmp_path.glob("*.json"))
    assert any("traceEvents" in json.loads(trace.read_text()) for trace in traces)
    assert any("Self CPU" in file.read_text() for file in tmp_path.glob("*profile*.txt"))


@pytest.mark.quick
@pytest.mark.parametrize("workers", [0])
def test_two_ranks_train_as_one_process_on_the_joined_batch(shards, tmp_path, workers):
    common = ["+experiment=sensor", *SHORT, "trainer.precision=32-true", "optimizer.lr=0.001"]
    one = run_training([*common, "data.batch_size=32", f"hydra.run.dir={tmp_path}/one"], shards)
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=16"]
    words = [*common, *ddp, f"hydra.run.dir={tmp_path}/two"]
    two = run_training(words, shards, COLUMNS="300")  # no table is wrapped
    assert one.returncode == 0, one.stderr[-3000:]
    assert two.returncode == 0, two.stderr[-3000:]
    assert noise(two.stdout, two.stderr, tmp_path / "two") == []
    single, double = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert sorted(single) == sorted(double) == list(range(1, 9))
    for step in single:
        assert float(double[step]) == pytest.approx(float(single[step]), abs=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.heavy
def test_evaluation_in_training_is_logged_and_changes_nothing(here):
    short = [word for word in SHORT if word != "~evaluation"]
    train_here(here / "plain", *short)
    for unit, every, steps in (("steps", 3, [3, 6]), ("epochs", 1, [5, 8])):
        folder = here / unit
        settings = (f"+evaluation.every={every}", f"+evaluation.unit={unit}", "data.batch_size=32")
        if unit == "steps":
            settings = settings[:2]
        train_here(folder, *short, *settings)
        with (folder / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        column = "eval/unseen/image_to_sensor/r@1"
        assert [int(row["step"]) for row in rows if row[column]] == steps
        assert all(row["train/loss"] for row in rows)
    assert losses(here / "steps") == losses(here / "plain")
    final = json.loads((here / "steps" / "metrics.json").read_text())
    assert final == json.loads((here / "plain" / "metrics.json").read_text())
