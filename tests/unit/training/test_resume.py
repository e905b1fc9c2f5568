"""Which checkpoint is resumed, what may differ, and which checkpoints stay."""

import json

import pytest
import torch
from experiment_helpers import losses, train_here, weights, write_sensor_shards
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.trainer.connectors.accelerator_connector import _AcceleratorConnector

from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.file import CheckpointError, write_atomically
from multimodal.training.resume import check_same_experiment, differences, find

SHORT = ("trainer.max_steps=8", "callbacks.checkpoint.every_n_train_steps=2", "~evaluation")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def here(shards, monkeypatch, tmp_path):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    torch.set_num_threads(1)
    return tmp_path


SAVED = {
    "seed": 0,
    "optimizer": {"lr": 0.1, "betas": [0.9, 0.95]},
    "trainer": {"max_steps": 10, "precision": "32-true", "devices": 2},
    "data": {"num_workers": 2, "sources": {"a": {"manifest": "/here", "repeat": 1}}},
    "scheduler": {"max_steps": 10},
}


def changed(**values):
    tree = json.loads(json.dumps(SAVED))
    for path, value in values.items():
        *blocks, key = path.split("__")
        node = tree
        for block in blocks:
            node = node[block]
        node[key] = value
    return tree


def test_only_what_decides_what_is_learned_counts_as_a_difference():
    free = changed(
        trainer__devices=1, trainer__max_steps=20, data__num_workers=0,
        data__sources={"a": {"manifest": "/there", "repeat": 1}},
    )  # fmt: skip
    assert differences(SAVED, free) == {}
    other = changed(seed=1, trainer__precision="bf16-mixed", optimizer__lr=0.2)
    assert differences(SAVED, other) == {
        "seed": (0, 1),
        "optimizer.lr": (0.1, 0.2),
        "trainer.precision": ("32-true", "bf16-mixed"),
    }


def test_a_checkpoint_from_before_a_key_agrees_with_what_was_done_then():
    own = {**SAVED, "negatives": {"_target_": "x", "k": 16}}
    new = {**SAVED, "negatives": {"_target_": "x", "k": 16, "warmup_steps": 0}}
    assert differences(own, new) == {}
    new["negatives"]["warmup_steps"] = 100
    assert differences(own, new) == {"negatives.warmup_steps": ("absent", 100)}
    nested = {"then": {"k": 1, "warmup_steps": 0}, "warmup_steps": 0}
    before, after = ({"pairs": {"a": {"negatives": n}}} for n in ({"then": {"k": 1}}, nested))
    assert differences(before, after) == {}
    old = {"model": {"towers": {"image": {"head": {"hidden": 8}}}}}
    head = {"hidden": 8, "standardize": False, "hidden_dropout": 0.0}
    assert differences(old, {"model": {"towers": {"image": {"head": head}}}}) == {}


def test_a_run_is_named_by_its_folder_and_resumed_from_its_newest_checkpoint(tmp_path):
    run = tmp_path / "run"
    for step in (2, 10):
        content = {"state_dict": {}, "global_step": step}
        write_atomically(content, run / "checkpoints" / f"step={step:08d}.ckpt")
    newest = run / "checkpoints" / "step=00000010.ckpt"
    assert find(str(run), tmp_path / "other") == find("auto", run) == newest
    assert find(str(newest), tmp_path) == newest
    assert find(None, run) is None
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="young: this run has no checkpoint yet"):
        find(str(tmp_path / "young"), run)


def test_another_experiment_is_rejected_with_its_differing_keys():
    other = changed(seed=1, optimizer__lr=0.2)
    del other["data"]["sources"]["a"]["repeat"]
    with pytest.raises(CheckpointError) as caught:
        check_same_experiment(SAVED, other, [], "x.ckpt")
    message = str(caught.value)
    for part in (
        "seed: checkpoint 0, this run 1",
        "optimizer.lr: checkpoint 0.1, this run 0.2",
        "sources.a.repeat",
    ):
        assert part in message
    assert "resume.allow=[data.sources.a.repeat,optimizer.lr,seed]" in message
    with pytest.raises(CheckpointError, match=r"^(?!.*optimizer\.lr:)"):
        check_same_experiment(SAVED, other, ["optimizer"], "x.ckpt")
    allowed = check_same_experiment(SAVED, other, ["optimizer", "seed", "data"], "x.ckpt")
    assert allowed == {"data.sources.a.repeat": "absent", "optimizer.lr": 0.2, "seed": 1}


def test_an_invalid_key_is_reported_with_the_nearest():
    with pytest.raises(CheckpointError, match=r"did you mean 'optimizer\.lr'"):
        check_same_experiment(SAVED, SAVED, ["optimzer.lr"], "x.ckpt")


def test_a_longer_training_resumes_with_a_note(capsys):
    longer = changed(trainer__max_steps=20, scheduler__max_steps=20)
    check_same_experiment(SAVED, longer, [], "x.ckpt")
    assert "scheduler.max_steps=20, which was 10" in capsys.readouterr().err


def test_an_allowed_learning_rate_is_the_one_that_is_used(here):
    whole = ("scheduler=constant", "optimizer.lr=0.001", *SHORT)
    train_here(here / "run", *whole)
    path = here / "run" / "checkpoints" / "step=00000006.ckpt"
    words = ("scheduler=constant", "optimizer.lr=0.0", "trainer.max_steps=8", "~evaluation")
    with pytest.raises(CheckpointError, match=r"optimizer\.lr: checkpoint 0\.001, this run 0\.0"):
        train_here(here / "refused", *words, f"resume='{path}'")
    train_here(here / "still", *words, f"resume='{path}'", "resume_allow=[optimizer.lr]")
    before, after = weights(here / "run", 6), weights(here / "still", 8)
    learned = [name for name in before if before[name].is_floating_point() and "norm" not in name]
    assert any(not torch.equal(before[n], weights(here / "run", 8)[n]) for n in learned)
    assert all(
        torch.equal(before[n], after[n]) for n in learned if "running" not in n and "bn" not in n
    )


def test_the_last_and_the_best_checkpoints_stay(here):
    monitor = "val/measured/image_to_sensor_r@1"
    train_here(
        here,
        "trainer.max_steps=12",
        "trainer.val_check_interval=2",
        "callbacks.checkpoint.every_n_train_steps=3",
        "callbacks.checkpoint.keep_last=1",
        "callbacks.checkpoint.keep_best=2",
        f"callbacks.checkpoint.monitor={monitor}",
        "~evaluation",
    )
    there = store.steps(here / "checkpoints")
    last = store.read(there[12])
    (state,) = [s for s in last["callbacks"].values() if "scores" in s]
    assert sorted(state["scores"]) == [2, 4, 6, 8, 10]  # 12 is validated after it is saved
    assert state["validation_due"]
    with (here / "metrics.csv").open() as file:
        header, *rows = [line.split(",") for line in file.read().splitlines()]
    score = {int(r[0]): float(r[header.index(monitor)]) for r in rows if r[header.index(monitor)]}
    assert sorted(score) == [2, 4, 6, 8, 10, 12]
    best = sorted(score, key=lambda step: (score[step], step))[-2:]
    assert sorted(there) == sorted({*best, 12})


def test_a_checkpoint_says_where_it_comes_from(here):
    train_here(here, "trainer.max_steps=1", "~evaluation")
    content = store.read(here / "checkpoints" / "step=00000001.ckpt")
    assert "embed_dim: 16" in content["config"]
    assert content["origin"]["code"]["version"]
    assert len(content["origin"]["manifests"]["measured"]) == 64


@pytest.mark.heavy
def test_a_run_cut_off_before_its_validation_begins_with_it(here):
    words = ("trainer.max_steps=8", "trainer.val_check_interval=4", "~evaluation")
    every = "callbacks.checkpoint.every_n_train_steps=4"
    train_here(here / "whole", *words, every)
    for run in ("cut",):
        train_here(here / run, *words, every)
        (here / run / "checkpoints" / "step=00000008.ckpt").unlink()
        text = (here / run / "metrics.csv").read_text().splitlines()
        kept = [line for line in text[1:] if int(line.split(",")[0]) < 4]
        (here / run / "metrics.csv").write_text("\n".join([text[0], *kept]) + "\n")
        # The loss of step 4 was in the same row as the validation that is to come.
        train_here(here / run, *words, every, "resume=auto")
    column = "val/measured/image_to_sensor_r@1"

    def scores(folder):
        header, *rows = [x.split(",") for x in (folder / "metrics.csv").read_text().splitlines()]
        at = header.index(column)
        return {int(row[0]): row[at] for row in rows if row[at]}

    assert scores(here / "cut") == scores(here / "whole")
    assert sorted(scores(here / "whole")) == [4, 8]
    assert losses(here / "cut")[8] == losses(here / "whole")[8]


@pytest.mark.heavy
def test_the_scale_of_float16_goes_on_bit_exactly(here, monkeypatch):
    """The scaler grows every three steps, so a resumed run without its state would differ."""

    def precision(connector):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        return MixedPrecision("16-mixed", "cpu", scaler)  # Lightning has none on a CPU

    monkeypatch.setattr(_AcceleratorConnector, "_check_and_init_precision", precision)
    words = [*SHORT, "scheduler=constant", "trainer.precision=16-mixed"]
    words.append("callbacks.checkpoint.keep_last=9")
    whole, resumed = here / "whole", here / "resumed"
    train_here(whole, *words)
    train_here(resumed, *words, "trainer.max_steps=4")
    train_here(resumed, *words, "resume=auto")
    states = {}
    for folder in (whole, resumed):
        for step in (4, 8):
            content = store.read(folder / "checkpoints" / f"step={step:08d}.ckpt")
            states[folder.name, step] = content["MixedPrecision"]
    assert states["resumed", 4]["scale"] == 8.0
    assert states["resumed", 4]["_growth_tracker"] == 1
    assert states["whole", 8]["scale"] == 16.0
    assert states["resumed", 8] == states["whole", 8]
    first, second = weights(whole, 8), weights(resumed, 8)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_key_that_came_later_is_as_good_as_null():
    then = {"data": {"sources": {"a": {"manifest": "a.json"}}}}
    now = {"data": {"sources": {"a": {"manifest": "a.json", "join": None}}}}
    assert differences(then, now) == {}
    now["data"]["sources"]["a"]["join"] = "id"
    assert differences(then, now) == {"data.sources.a.join": ("absent", "id")}
