"""FSDP2 on two gloo ranks, and the folders that are its checkpoints."""

import csv
import json
import pickle
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from experiment_helpers import composed, losses, run_training, write_sensor_shards
from rank_helpers import Ranks, callback

from multimodal.config import ConfigError, check
from multimodal.core.files import sha256
from multimodal.evaluation.run import evaluate_metrics
from multimodal.evaluation.trained_pairs import trained_pairs
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint import sharded, store
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.inference.checkpoint.load import load_checkpoint, load_model

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from multimodal.cli import join_checkpoint

# A tower of layers with uneven sides beside one without; dropout off, so that ranks draw nothing.
STRATEGY = "trainer=fsdp"
WORDS = (
    "tower@model.towers.image=image_small", "~model.towers.image.encoder.channels",
    "~model.towers.image.encoder.blocks", "model.towers.image.encoder.image_size=16",
    "model.towers.image.encoder.stem.channels=[8,15]", "model.towers.image.encoder.trunk.width=30",
    "model.towers.image.encoder.trunk.num_layers=2", "model.towers.image.encoder.trunk.num_heads=2",
    "data.batch_size=16", "trainer.max_steps=8", "trainer.val_check_interval=4",
    "data.eval_batch_size=9", "callbacks.checkpoint.keep_last=9",
    "callbacks.checkpoint.every_n_train_steps=2",
)  # fmt: skip


def content(step=3, value=1.0):
    optimizer = {
        "state": {0: {"step": torch.tensor(float(step)), "exp_avg": torch.full((4, 3), value)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "params": [0]}],
    }
    state = {"a.weight": torch.full((4, 3), value), "a.count": torch.tensor(7)}
    return {"state_dict": state, "optimizer_states": [optimizer], "global_step": step,
            "config": "seed: 0"}  # fmt: skip


@pytest.mark.quick
def test_a_folder_reads_as_what_was_saved(tmp_path):
    path = tmp_path / "checkpoints" / "step=00000003.ckpt"
    for value in (5.0, 1.0):  # and again, over it
        sharded.write(content(value=value), path)
        back = store.read(path)
        assert back["global_step"] == 3
        assert back["state_dict"]["a.weight"].tolist() == [[value] * 3] * 4
        assert back["state_dict"]["a.count"].item() == 7
        (optimizer,) = back["optimizer_states"]
        assert optimizer["param_groups"] == content()["optimizer_states"][0]["param_groups"]
        assert optimizer["state"][0]["exp_avg"].tolist() == [[value] * 3] * 4
        assert optimizer["state"][0]["step"].item() == 3.0
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert store.newest(path.parent) == path
    assert "state_dict" not in store.head(path)
    checkpoint_file.write_atomically(content(value=2.0), path)  # a run of one process goes on here
    assert store.read(path)["state_dict"]["a.weight"][0, 0] == 2.0


@pytest.mark.quick
def test_a_folder_becomes_one_file(tmp_path, capsys):
    folder, file = tmp_path / "step=00000003.ckpt", tmp_path / "one.ckpt"
    sharded.write(content(), folder)
    join_checkpoint.main([str(folder), str(file)])
    assert capsys.readouterr().out == f"written: {file}\n"
    assert file.is_file()
    assert store.read(file)["state_dict"]["a.weight"].sum() == 12
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        join_checkpoint.main([str(tmp_path / "absent"), str(file)])


@pytest.mark.quick
@pytest.mark.parametrize("name", ["__0_0.distcp", "rest.pt", ".metadata", "sha256.json"])
def test_a_flipped_bit_in_any_file_is_detected_and_the_previous_folder_is_used(
    tmp_path, capsys, name
):
    for step in (10, 20):
        sharded.write(content(step), tmp_path / f"step={step:08d}.ckpt")
    file = tmp_path / "step=00000020.ckpt" / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    assert store.newest(tmp_path) == tmp_path / "step=00000010.ckpt"
    output = capsys.readouterr().err
    assert (
        "hash mismatch" in output
        or "is not a sharded checkpoint" in output
        or "is missing" in output
    )
    file.unlink()
    with pytest.raises(CheckpointError):
        store.read(tmp_path / "step=00000020.ckpt")
    assert store.read(tmp_path / "step=00000010.ckpt")["global_step"] == 10


class Payload:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (open, (self.target, "w"))


@pytest.mark.quick
def test_code_in_the_description_of_the_tensors_is_rejected_and_not_executed(tmp_path):
    path, trace = tmp_path / "step=00000003.ckpt", tmp_path / "executed"
    sharded.write(content(), path)
    (path / ".metadata").write_bytes(pickle.dumps(Payload(trace)))
    hashes = json.loads((path / "sha256.json").read_text())
    hashes[".metadata"] = sha256(path / ".metadata").hex()
    (path / "sha256.json").write_text(json.dumps(hashes))
    with pytest.raises(CheckpointError, match=r"must not name \w+\.open"):
        store.read(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))  # the payload does work when executed
    assert trace.exists()


@pytest.mark.quick
def test_a_full_disk_leaves_the_folder_before(small_disk):
    path = small_disk / "step=00000001.ckpt"
    sharded.write(content(), path)
    large = content()
    large["state_dict"]["b"] = torch.ones(1_000_000)
    message = rf"cannot save {path}: rank 0: .+\. \d\.\d MB are free there"
    with pytest.raises(CheckpointError, match=message):
        sharded.write(large, path)
    assert [p.name for p in small_disk.iterdir()] == [path.name]
    assert store.read(path)["state_dict"]["a.weight"].sum() == 12


@pytest.mark.quick
def test_unsupported_features_are_rejected_with_the_reason():
    clip = "+experiment=clip_scratch"
    words = ["model.compile=blocks", "candidates=queue", "candidates.momentum=0.9"]
    with composed(clip, "trainer=fsdp", *words) as cfg, pytest.raises(ConfigError) as caught:
        check(cfg)
    for where in ("model.compile", "candidates.momentum"):
        assert f"{where}\n      does not go with trainer=fsdp" in str(caught.value)
    with composed(clip, "trainer=fsdp", "callbacks=ema", "micro_batch_size=4") as cfg:
        check(cfg)
    message = r"trainer\.strategy\n +'fsdp' saves .*trainer=fsdp"
    words = (clip, "trainer=ddp", "trainer.strategy=fsdp")
    with composed(*words) as cfg, pytest.raises(ConfigError, match=message):
        check(cfg)


@pytest.mark.quick
@pytest.mark.parametrize("optimizer", ["muon", "adafactor", "schedule_free"])
def test_optimizers_of_whole_matrices_are_rejected_with_the_reason(optimizer):
    words = ("+experiment=clip_scratch", f"optimizer={optimizer}", "scheduler=constant")
    with composed(*words, STRATEGY) as cfg:  # noqa: SIM117
        with pytest.raises(ConfigError, match="does not go with trainer=fsdp: it"):
            check(cfg)
    with composed(*words, "trainer=ddp") as cfg:
        check(cfg)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


def run(folder, shards, *words, codes=(0, 0)):
    with Ranks([*WORDS, *words], folder, shards, len(codes)) as ranks:
        assert ranks.codes(300) == list(codes), ranks.output()
    return folder


@pytest.fixture(scope="module")
def split(shards, tmp_path_factory):
    """A whole run by FSDP."""
    return run(tmp_path_factory.mktemp("runs") / "fsdp", shards, STRATEGY)


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """The same run by DDP."""
    return run(tmp_path_factory.mktemp("runs") / "ddp", shards)


def checkpoint(folder, step):
    return folder / "checkpoints" / f"step={step:08d}.ckpt"


def same(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=tolerance, msg=name)


def test_it_trains_as_ddp_does(split, whole):
    then, now = losses(whole), losses(split)
    assert sorted(now) == sorted(then) == list(range(1, 9))
    for step in now:
        assert float(now[step]) == pytest.approx(float(then[step]), abs=1e-5)
    assert checkpoint(split, 8).is_dir()
    assert len(list(checkpoint(split, 8).glob("*.distcp"))) == 2
    ours, theirs = (
        store.read(checkpoint(split, 8)),
        store.read(checkpoint(whole, 8)),
    )
    same(ours["state_dict"], theirs["state_dict"], 1e-5)
    (ours,), (theirs,) = ours["optimizer_states"], theirs["optimizer_states"]
    assert [g["params"] for g in ours["param_groups"]] == [
        g["params"] for g in theirs["param_groups"]
    ]
    for index, state in theirs["state"].items():
        same(ours["state"][index], state, 1e-5)


IN_PIECES = ("micro_batch_size=5", "model.towers.image.encoder.trunk.checkpointing=true")
AVERAGED = ("callbacks=ema", "callbacks.ema.decay=0.9")
ACCUMULATED = ("trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.5")


@pytest.mark.parametrize("words", [IN_PIECES, AVERAGED, ACCUMULATED, (*IN_PIECES, *ACCUMULATED)])
def test_pieces_averages_and_accumulation_are_as_under_ddp(words, shards, tmp_path):
    words = (*words, "trainer.max_steps=4", "trainer.val_check_interval=2")
    ddp = run(tmp_path / "ddp", shards, *words)
    fsdp = run(tmp_path / "fsdp", shards, STRATEGY, *words)
    then, now = losses(ddp), losses(fsdp)
    assert sorted(now) == sorted(then) == [1, 2, 3, 4]
    for step in now:
        assert float(now[step]) == pytest.approx(float(then[step]), abs=1e-5)
    assert scores(fsdp) == pytest.approx(scores(ddp), abs=1e-5)
    ours, theirs = (store.read(checkpoint(folder, 4)) for folder in (fsdp, ddp))
    for key in ("state_dict", *(["ema"] if words[:2] == AVERAGED else [])):
        same(ours[key], theirs[key], 1e-5)
    load_model(checkpoint(fsdp, 4))


def scores(folder):
    """Of every validation, which an average is used in."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("val/")]
    assert names
    return [float(row[name]) for row in rows for name in names if row[name]]


def test_an_average_is_resumed_bit_exactly_and_by_other_strategies(shards, tmp_path):
    words = (*AVERAGED, "trainer.max_steps=4")
    whole = run(tmp_path / "whole", shards, STRATEGY, *words)
    path = f"resume='{checkpoint(whole, 2)}'"
    again = run(tmp_path / "fsdp", shards, STRATEGY, *words, path)
    ddp = run(tmp_path / "ddp", shards, *words, path)
    back = run(tmp_path / "back", shards, STRATEGY, *AVERAGED, "trainer.max_steps=6",
               f"resume='{checkpoint(ddp, 4)}'")  # fmt: skip
    theirs = store.read(checkpoint(whole, 4))
    for folder, tolerance in ((again, 0), (ddp, 1e-5)):
        ours = store.read(checkpoint(folder, 4))
        assert ours["ema_steps"] == theirs["ema_steps"] == 4
        for key in ("state_dict", "ema"):
            same(ours[key], theirs[key], tolerance)
    assert store.read(checkpoint(back, 6))["ema_steps"] == 6


FUSED = (
    "+experiment=sensor_fusion", "encoder@model.towers.image.encoder=image_small",
    "~model.towers.image.encoder.channels", "~model.towers.image.encoder.blocks",
    *(word for word in WORDS if word.startswith("model.towers.image.encoder.")),
    "tasks.highest.dropout=0", "data.batch_size=2", "optimizer.lr=0.001", "trainer.max_steps=12",
    "callbacks.checkpoint.every_n_train_steps=6", "trainer.val_check_interval=6", "~evaluation",
    "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true",
)  # fmt: skip


def test_a_fusion_is_as_under_ddp_also_where_a_rank_lacks_a_modality(tmp_path):
    shards = write_sensor_shards(tmp_path / "shards", lacking=2)
    for name in ("ddp", "fsdp"):
        words = [*FUSED, f"trainer={name}", "model.modality_dropout=0.5"]
        done = run_training([*words, f"hydra.run.dir={tmp_path / name}"], shards)
        assert done.returncode == 0, done.stderr[-3000:]
    then, now = losses(tmp_path / "ddp"), losses(tmp_path / "fsdp")
    assert sorted(now) == sorted(then) == list(range(1, 13))
    for step in now:
        assert float(now[step]) == pytest.approx(float(then[step]), abs=1e-5)
    ours, theirs = (store.read(checkpoint(tmp_path / name, 12)) for name in ("fsdp", "ddp"))
    same(ours["state_dict"], theirs["state_dict"], 1e-5)
    assert scores(tmp_path / "fsdp") == pytest.approx(scores(tmp_path / "ddp"), abs=1e-5)
    folder = checkpoint(tmp_path / "fsdp", 12)
    assert len(list(folder.glob("*.distcp"))) == 2  # layers are sharded


# Lion's step is a sign: where a gradient's sum rounds around 0, it is another one.
@pytest.mark.parametrize(("optimizer", "tolerance"), [("lion", 1e-3), ("sgd", 1e-5)])
def test_other_optimizers_train_as_under_ddp(optimizer, tolerance, shards, tmp_path):
    words = (f"optimizer={optimizer}", "trainer.max_steps=4")
    then = losses(run(tmp_path / "ddp", shards, *words))
    now = losses(run(tmp_path / "fsdp", shards, STRATEGY, *words))
    assert sorted(now) == sorted(then) == [1, 2, 3, 4]
    for step in now:
        assert float(now[step]) == pytest.approx(float(then[step]), abs=tolerance)
    assert abs(float(now[4]) - float(now[1])) > 10 * tolerance  # it has learned something


def test_it_is_killed_and_resumes_bit_exactly(split, shards, tmp_path):
    problem = callback("KillAll", folder=str(tmp_path), step=5)
    run(tmp_path, shards, STRATEGY, problem, codes=[-signal.SIGKILL] * 2)
    assert list(store.steps(tmp_path / "checkpoints")) == [2, 4]
    run(tmp_path, shards, STRATEGY, "resume=auto")
    assert losses(tmp_path) == losses(split)
    ours, whole = (store.read(checkpoint(folder, 8)) for folder in (tmp_path, split))
    same(ours["state_dict"], whole["state_dict"], 0)
    for index, state in whole["optimizer_states"][0]["state"].items():
        same(ours["optimizer_states"][0]["state"][index], state, 0)


def test_other_strategies_resume_from_it_and_it_from_theirs(split, whole, shards, tmp_path):
    def go_on(name, source, *words, ranks=2):
        path = f"resume='{checkpoint(source, 4)}'"
        folder = run(tmp_path / name, shards, *words, path, codes=[0] * ranks)
        for step, loss in losses(folder).items():
            assert float(loss) == pytest.approx(float(losses(whole)[step]), abs=1e-5), name
        assert sorted(losses(folder)) == [5, 6, 7, 8]

    go_on("ddp from fsdp", split)
    go_on("fsdp from ddp", whole, STRATEGY)
    go_on("one process from fsdp", split, "data.batch_size=32", ranks=1)


def test_its_checkpoint_is_loaded_and_becomes_one_file(split, tmp_path):
    path = checkpoint(split, 8)
    model, _ = load_model(path)
    state = store.read(path)["state_dict"]
    same({f"model.{n}": t for n, t in model.state_dict().items()},
         {n: t for n, t in state.items() if n.startswith("model.")}, 0)  # fmt: skip
    join_checkpoint.main([str(path), str(tmp_path / "one.ckpt")])
    joined, _ = load_model(tmp_path / "one.ckpt")
    same(joined.state_dict(), model.state_dict(), 0)


def test_the_last_stay_and_another_experiment_is_rejected(split, shards, tmp_path):
    copy = shutil.copytree(split, tmp_path / "run")
    refused = run_training(
        ["+experiment=sensor", *WORDS, "optimizer.lr=0.1", "resume=auto", f"hydra.run.dir={copy}"],
        shards,
    )
    assert refused.returncode == 2
    assert "optimizer.lr: checkpoint 0.005, this run 0.1" in refused.stderr
    kept = ("callbacks.checkpoint.keep_last=2", "callbacks.checkpoint.keep_best=0")
    run(tmp_path / "short", shards, STRATEGY, *kept)
    assert sorted(p.name for p in (tmp_path / "short" / "checkpoints").iterdir()) == [
        "step=00000006.ckpt", "step=00000008.ckpt",
    ]  # fmt: skip


def test_a_longer_run_takes_the_new_schedules_rates(split, shards, tmp_path):
    run(tmp_path, shards, STRATEGY, "trainer.max_steps=4")
    run(tmp_path, shards, STRATEGY, "resume=auto")

    def rates(folder):
        with (folder / "metrics.csv").open(newline="") as file:
            return {r["step"]: r["train/lr"] for r in csv.DictReader(file) if r["train/lr"]}

    longer, whole = rates(tmp_path), rates(split)
    assert [longer[step] for step in "5678"] == [whole[step] for step in "5678"]


def test_other_trained_parameters_are_refused_and_ddp_leads_on(shards, tmp_path):
    frozen = "model.towers.image.frozen"
    run(tmp_path, shards, STRATEGY, "trainer.max_steps=4", f"{frozen}=true")
    changed = [f"{frozen}=false", f"resume_allow=[{frozen}]", "resume=auto"]
    with Ranks([*WORDS, STRATEGY, *changed], tmp_path, shards, 2) as ranks:
        assert ranks.codes(300) == [1, 1]
        said = ranks.output()
    assert "Traceback" not in said
    assert "trained other parameters than this run would (model.model.towers.image" not in said
    assert "trained other parameters than this run would (model.towers.image" in said
    assert "by trainer=ddp" in said
    run(tmp_path, shards, "trainer.max_steps=6", *changed)
    run(tmp_path, shards, STRATEGY, *changed)
    assert sorted(losses(tmp_path)) == list(range(1, 9))


def test_the_best_checkpoint_is_evaluated_at_the_end(shards, tmp_path):
    """Each rank takes its shard of it; the lowest score is taken for the best."""
    words = (
        "+experiment=sensor", STRATEGY, "trainer.accelerator=cpu", "trainer.devices=2", *WORDS,
        "trainer.precision=32-true", "callbacks.checkpoint.mode=min", f"hydra.run.dir={tmp_path}",
        "callbacks.checkpoint.keep_last=1", "callbacks.checkpoint.every_n_train_steps=100",
    )  # fmt: skip
    done = run_training(words, shards)
    assert done.returncode == 0, done.stderr[-3000:]
    there = store.steps(tmp_path / "checkpoints")
    assert sorted(there) == [4, 8]
    assert "it is evaluated, not the last step, 8" in done.stdout
    loaded = load_checkpoint(there[4])
    pairs = trained_pairs(loaded.cfg)
    expected = evaluate_metrics(loaded.model, loaded.cfg, pairs, loaded.temperatures)
    found = json.loads((tmp_path / "metrics.json").read_text())["unseen"]["image_to_sensor"]
    for name in ("r@1", "r@10", "mrr"):
        if name in found:
            assert found[name] == pytest.approx(expected[f"unseen/image_to_sensor/{name}"])
