"""Runs that are killed with -9 and go on: to the last bit, and on another number of ranks."""

import csv
import signal

import pytest
import torch
from experiment_helpers import losses, run_training, train_here, weights, write_sensor_shards
from rank_helpers import Ranks, callback, lines

from multimodal.data.errors import DataMismatchError
from multimodal.inference.checkpoint import store

# A global batch of 16 of 160 samples: an epoch is 10 steps. Everything that is random is on.
RANDOM = (
    "model.towers.image.head.dropout=0.2", "model.towers.sensor.head.dropout=0.3",
    "data.transforms.image.flip=0.5", "data.transforms.image.grayscale=0.2",
)  # fmt: skip
KEPT = "callbacks.checkpoint.keep_last=99"
EPOCH, SAMPLES = 10, 160


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


def batches(folder, ranks):
    """Step -> what each rank was given; a step that was repeated after a kill counts once."""
    notes = [{n["step"]: n for n in lines(folder / f"batches_{r}.jsonl")} for r in range(ranks)]
    assert all(note.keys() == notes[0].keys() for note in notes)
    return {step: [note[step] for note in notes] for step in sorted(notes[0])}


def keys_of(folder, ranks):
    """Step -> the keys of the global batch, in the order of the ranks."""
    return {
        step: [key for note in each for key in note["keys"]]
        for step, each in batches(folder, ranks).items()
    }


def completed(words, folder, shards, ranks):
    with Ranks(words, folder, shards, ranks) as run:
        assert run.codes(300) == [0] * ranks, run.output()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("ranks", "workers"),
    [
        pytest.param(4, 0, marks=pytest.mark.slow),
        pytest.param(2, 2, marks=pytest.mark.slow),
        pytest.param(1, 2, marks=pytest.mark.slow),
        (1, 0),
    ],
)
def test_a_run_killed_in_mid_epoch_resumes_bit_exactly(shards, tmp_path, ranks, workers):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = [*RANDOM, KEPT, f"data.num_workers={workers}", f"data.batch_size={16 // ranks}",
             "trainer.max_steps=57", "callbacks.checkpoint.every_n_train_steps=7"]  # fmt: skip
    completed([*words, callback("NoteBatches", folder=str(whole))], whole, shards, ranks)

    words.append(callback("NoteBatches", folder=str(killed)))
    problem = callback("KillAll", folder=str(killed), step=12)
    with Ranks([*words, problem], killed, shards, ranks) as run:
        assert run.codes(300) == [-signal.SIGKILL] * ranks, run.output()
    assert all((killed / f"killed_{rank}").exists() for rank in range(ranks))
    assert max(losses(killed)) == 12
    completed([*words, "resume=auto"], killed, shards, ranks)

    assert {step: loss for step, loss in losses(killed).items() if step > 7} == {
        step: loss for step, loss in losses(whole).items() if step > 7
    }
    assert losses(killed) == losses(whole)
    assert sorted(losses(whole)) == list(range(1, 58))
    before, after = weights(whole, 57), weights(killed, 57)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

    # The same samples under the same augmentation on the same ranks; the repeated steps too.
    assert batches(killed, ranks) == batches(whole, ranks)
    for rank in range(ranks):
        steps = [note["step"] for note in lines(killed / f"batches_{rank}.jsonl")]
        assert steps == [*range(13), *range(7, 57)]
    keys = keys_of(killed, ranks)
    for first in range(0, 50, EPOCH):
        seen = [key for step in range(first, first + EPOCH) for key in keys[step]]
        assert len(seen) == len(set(seen)) == SAMPLES


def test_a_run_fails_twice_inside_accumulations_and_resumes_bit_exactly(
    shards, tmp_path, monkeypatch
):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    torch.set_num_threads(1)
    stop = "{_target_: pytorch_lightning.callbacks.EarlyStopping, patience: 20, mode: max, "
    stop += "monitor: 'val/measured/image_to_sensor_r@1'}"
    words = (*RANDOM, KEPT, "~evaluation", "trainer.max_steps=14", "data.batch_size=8",
             "trainer.accumulate_grad_batches=3", "trainer.val_check_interval=6",
             "callbacks.checkpoint.every_n_train_steps=2", "data.num_workers=2",
             f"+callbacks.early={stop}", "allowed_packages=[fault_callbacks]")  # fmt: skip
    whole, fallen = tmp_path / "whole", tmp_path / "fallen"
    train_here(whole, *words)
    for step in (5, 9):
        problem = callback("Fall", step=step)
        with pytest.raises(OSError, match="inside an accumulation"):
            train_here(fallen, *words, problem, "resume=auto")
        assert max(store.steps(fallen / "checkpoints")) == step - 1
    train_here(fallen, *words, "resume=auto")
    assert learned(fallen) == learned(whole)
    assert sorted(losses(whole)) == list(range(1, 15))
    before, after = (store.read(f / "checkpoints" / "step=00000014.ckpt")
                     for f in (whole, fallen))  # fmt: skip
    assert before["state_dict"].keys() == after["state_dict"].keys()
    for name, tensor in before["state_dict"].items():
        assert torch.equal(tensor, after["state_dict"][name]), name
    (kept,), (other,) = ([s for name, s in content["callbacks"].items() if "EarlyStopping" in name]
                         for content in (before, after))  # fmt: skip
    assert kept == other
    assert kept["best_score"] > 0


@pytest.mark.heavy
def test_a_row_is_the_mean_over_the_batches_of_its_accumulations(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    torch.set_num_threads(1)
    words = ("~evaluation", "optimizer.lr=1e-12", "data.batch_size=8", "scheduler=constant")
    train_here(tmp_path / "batches", *words, "trainer.max_steps=12")
    train_here(tmp_path / "steps", *words, "trainer.max_steps=4", "trainer.log_every_n_steps=2",
               "trainer.accumulate_grad_batches=3")  # fmt: skip
    each = {step: float(loss) for step, loss in losses(tmp_path / "batches").items()}
    rows = {step: float(loss) for step, loss in losses(tmp_path / "steps").items()}
    for row, batches in ((2, range(1, 7)), (4, range(7, 13))):
        assert rows.pop(row) == pytest.approx(sum(each[n] for n in batches) / 6, abs=1e-4)
    assert not rows


@pytest.mark.heavy
def test_what_was_not_logged_yet_is_not_lost(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    torch.set_num_threads(1)
    words = ("trainer.max_steps=8", "trainer.log_every_n_steps=4", KEPT, "~evaluation",
             "callbacks.checkpoint.every_n_train_steps=1")  # fmt: skip
    train_here(tmp_path / "whole", *words)
    for step in (3, 4, 6):
        path = tmp_path / "whole" / "checkpoints" / f"step={step:08d}.ckpt"
        train_here(tmp_path / f"from{step}", *words, f"resume='{path}'")
        assert learned(tmp_path / f"from{step}") == {
            row: values for row, values in learned(tmp_path / "whole").items() if row > step
        }
    assert sorted(learned(tmp_path / "whole")) == [4, 8]


def learned(folder):
    """Step -> the row of `metrics.csv`, without the times that were measured."""
    with (folder / "metrics.csv").open(newline="") as file:
        return {
            int(row["step"]): {k: v for k, v in row.items() if k.startswith(("train/l", "val/"))}
            for row in csv.DictReader(file)
        }


# Dropout off: its draws belong to a rank. Augmentation, which belongs to a sample, stays on.
DOUBLE = ("data.transforms.image.flip=0.5", "trainer.precision=64-true", KEPT,
          "callbacks.checkpoint.every_n_train_steps=7")  # fmt: skip


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_ranks_trains_on_the_same_global_batches(shards, tmp_path, before, after):
    words = [*DOUBLE, "trainer.max_steps=27"]

    def run(folder, ranks, *more):
        note = callback("NoteBatches", folder=str(folder))
        completed(
            [*words, note, f"data.batch_size={16 // ranks}", *more],
            folder, shards, ranks,
        )  # fmt: skip

    run(tmp_path / "whole", before)
    path = tmp_path / "whole" / "checkpoints" / "step=00000007.ckpt"
    run(tmp_path / "other", after, f"resume='{path}'")
    then, now = losses(tmp_path / "whole"), losses(tmp_path / "other")
    assert sorted(now) == list(range(8, 28))
    assert float(now[8]) == pytest.approx(float(then[8]), abs=1e-6)
    for step in now:
        assert float(now[step]) == pytest.approx(float(then[step]), abs=1e-10)
    assert len(set(now.values())) == 20
    whole = keys_of(tmp_path / "whole", before)
    assert keys_of(tmp_path / "other", after) == {s: k for s, k in whole.items() if s >= 7}


@pytest.mark.quick
def test_a_global_batch_that_is_not_kept_is_rejected_before_the_first_step(
    shards, tmp_path, monkeypatch
):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    train_here(tmp_path / "run", "trainer.max_steps=2", "data.batch_size=15", "~evaluation")
    path = tmp_path / "run" / "checkpoints" / "step=00000002.ckpt"
    with pytest.raises(DataMismatchError, match=r"was 15, is 16 \(16 on each of 1 devices\)"):
        train_here(
            tmp_path / "other", "trainer.max_steps=4", "data.batch_size=16", "~evaluation",
            f"resume='{path}'",
        )  # fmt: skip
    words = ["+experiment=sensor", "~evaluation", "trainer.max_steps=4", f"resume='{path}'"]
    done = run_training([*words, f"hydra.run.dir={tmp_path}/other"], shards)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "the global batch of source 'measured' was 15, is 32" in done.stderr
    assert "set data.batch_size=15" in done.stderr
    assert not (tmp_path / "other" / "metrics.csv").exists()
