"""What looks like a key is written down nowhere: folder, logs, checkpoints, sweep, wandb."""

from __future__ import annotations

import pytest
from experiment_helpers import ROOT, run_training, write_sensor_shards
from wandb_files import offline_runs

from multimodal.runs.secrets import REDACTED, redacted, secrets_in
from multimodal.training import checkpoint_io

TYPED = "correct-horse-battery-42"  # secret by the name of its key
TOKEN = "hf_" + "aB3" * 10  # secret by its form, from the environment


def test_keys_are_known_by_their_form_or_their_name():
    tree = {
        "a": {
            "api_key": TYPED,
            "layer_key": "short1",
            "token": "${oc.env:X}",
            "key": "no-digit-here",
        },
        "url": "s3://user:pass123@host/x",
        "list": [f"Bearer {TOKEN}"],
        "words": [f"+a.b.api_key={TYPED}", f"+c={{_target_: x.Y, password: {TYPED}2, key: 3}}"],
        "keys": "monkey=banana-banana-1 lr=0.123456789012 key=${oc.env:SOME_NAME_1}",
        "mean": [0.5],
    }
    assert dict(secrets_in(tree)) == {
        "a.api_key": TYPED, "url": "user:pass123", "list[0]": TOKEN,
        "words[0]": TYPED, "words[1]": f"{TYPED}2",
    }  # fmt: skip
    assert redacted(f"x {TOKEN} y {TYPED}", [TYPED, TOKEN]) == f"x {REDACTED} y {REDACTED}"


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A job of a sweep that was given two keys: its output, the sweep's folder, its own."""
    folder = tmp_path_factory.mktemp("sweep")
    shards = write_sensor_shards(tmp_path_factory.mktemp("shards"))
    notify = (
        "+callbacks.notify={_target_: fault_callbacks.Notify, "
        f"api_key: {TYPED}, login: '${{oc.env:MY_LOGIN}}'}}"
    )
    words = ["-m", "+experiment=sensor", "trainer.max_steps=1", notify, "logger=wandb"]
    words += ["logger.wandb.offline=true", "allowed_packages=[fault_callbacks]"]
    words += [f"hydra.sweep.dir={folder}"]
    done = run_training(words, shards, MY_LOGIN=TOKEN, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr, folder, folder / "0"


def test_no_file_and_no_output_holds_a_key(job):
    output, folder, _ = job
    files = [path for path in folder.rglob("*") if path.is_file()]
    holders = [
        str(path.relative_to(folder))
        for path in files
        for secret in (TYPED, TOKEN)
        if secret.encode() in path.read_bytes()
    ]
    assert holders == []
    assert len(files) > 15
    assert TYPED not in output
    assert TOKEN not in output
    assert "callbacks.notify.api_key looks like a key or a password" in output


@pytest.mark.parametrize(
    "name",
    ["multirun.yaml", "0/.hydra/config.yaml", "0/.hydra/overrides.yaml", "0/run.json",
     "0/train.log", "0/finished.json", "sweep.csv"],
)  # fmt: skip
def test_the_text_files_have_a_mark_in_its_place(job, name):
    assert REDACTED in (job[1] / name).read_text()


def test_the_checkpoint_has_a_mark_in_its_place(job):
    (path,) = (job[2] / "checkpoints").glob("*.ckpt")
    config = checkpoint_io.read(path)["config"]
    assert f"api_key: {REDACTED}" in config
    assert f"login: {REDACTED}" in config


def test_weights_and_biases_have_a_mark_in_its_place(job):
    (run,) = offline_runs(job[2])
    notify = run.config["callbacks"]["notify"]
    assert (notify["api_key"], notify["login"]) == (REDACTED, REDACTED)
