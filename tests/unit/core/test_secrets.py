"""What looks like a key is written down nowhere: folder, logs, checkpoints, sweep, wandb."""

from __future__ import annotations

import pytest
from experiment_helpers import ROOT, run_training, write_sensor_shards
from omegaconf import OmegaConf
from wandb_files import offline_runs

from multimodal.cli.jobs.folder import refuse_taken_folder
from multimodal.config import ConfigError
from multimodal.config.portable import portable_yaml
from multimodal.core.process.secrets import REDACTED, redacted, secrets_in
from multimodal.inference.checkpoint import store

TYPED = "correct-horse-battery-42"  # secret by the name of its key
ENVIRONED = "hush-hush"  # secret by the name of its variable
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


SIGNED = "https://h.s3.amazonaws.com/x.json?X-Amz-Credential=AKx%2F2&X-Amz-Signature=0f3a&b=1"


@pytest.mark.parametrize(
    ("tree", "secrets"),
    [
        ({"manifest": "https://host/x.json?token=tiny1"}, ["tiny1"]),
        ({"manifest": "https://host/x.json?v=2&sig=a%2Bb#top"}, ["a%2Bb"]),
        ({"manifest": SIGNED}, ["AKx%2F2", "0f3a"]),
        ({"manifest": "https://ann:pw@host/x.json"}, ["ann:pw"]),
        ({"manifest": "https://tokentoken@host/x.json"}, ["tokentoken"]),
        ({"auth": "Bearer abcdefgh"}, ["abcdefgh", "Bearer abcdefgh"]),
        ({"headers": {"Authorization": "Basic YWJjOmRlZg=="}}, None),
        ({"password": "horse"}, ["horse"]),
        ({"db_password": 4321}, ["4321"]),
        ({"storage": {"account_key": "short"}}, ["short"]),
        (["+x.password=horse"], ["horse"]),
        (["name=${oc.env:DB_PASSWORD}"], ["hush"]),
        ({"name": "run-${oc.env:DB_PASSWORD,none}"}, ["hush"]),
    ],
)
def test_kinds_of_secrets(tree, secrets, monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "hush")
    found = [secret for _, secret in secrets_in(tree)]
    assert found if secrets is None else sorted(found) == sorted(secrets)


@pytest.mark.parametrize(
    "tree",
    [
        {"pad_token": "<pad>", "key": "caption", "token": "cls", "num_tokens": 77, "keys": "a=b"},
        {"manifest": "https://host/x.json?version=2", "path": "s3://bucket/a:b/c"},
        {"folder": "abfs://container@account/x", "auth": "basic", "password": None},
        ["monkey=banana", "author=me", "optimizer.lr=0.1", "x=${oc.env:HOME}", "y=${oc.env:PWD}"],
        {"home": "${oc.env:TOKENIZERS_PARALLELISM}", "dir": "${oc.env:COMPASS}"},
    ],
)
def test_what_is_not_secret(tree, monkeypatch):
    for name in ("TOKENIZERS_PARALLELISM", "COMPASS"):
        monkeypatch.setenv(name, "plain")
    assert list(secrets_in(tree)) == []


def test_a_short_secret_does_not_change_the_text_around_it():
    text = "password: 3\nsteps: 3\nword: horses horse\nlr: 0.3\nurl: https://h/x?sig=3&n=3"
    clean = redacted(text, ["3", "horse"])
    assert clean.replace(REDACTED, "*") == (
        "password: *\nsteps: 3\nword: horses *\nlr: 0.3\nurl: https://h/x?sig=*&n=3"
    )


def test_the_portable_configuration_has_marks(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "hush")
    given = OmegaConf.create(
        {"name": "${oc.env:DB_PASSWORD}", "also": "${name}", "in": {"password": 3, "steps": 3},
         "long": "a-${name}-b", "url": "https://host/x.json?sig=ab", "list": ["Bearer abcdefgh"]}
    )  # fmt: skip
    text = portable_yaml(given)
    assert OmegaConf.to_container(OmegaConf.create(text)) == {
        "name": REDACTED, "also": REDACTED, "in": {"password": REDACTED, "steps": 3},
        "long": f"a-{REDACTED}-b", "url": f"https://host/x.json?sig={REDACTED}",
        "list": [f"Bearer {REDACTED}"],
    }  # fmt: skip


def test_a_folder_is_not_named_by_a_secret(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "hush")
    cfg = {"name": "${oc.env:DB_PASSWORD}", "hydra": {"run": {"dir": "outputs/${name}/now"}}}
    with pytest.raises(ConfigError, match=r"by a secret \(of name\)"):
        refuse_taken_folder(OmegaConf.create(cfg))


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
    words += ["name=${oc.env:DB_PASSWORD}", "+callbacks.notify.password=horse"]
    words += ["+callbacks.notify.url='https://host/x.json?v=1&sig=s1gn&token=t0k'"]
    words += ["logger.wandb.offline=true", "allowed_packages=[fault_callbacks]"]
    words += [f"hydra.sweep.dir={folder}"]
    done = run_training(
        words,
        shards,
        MY_LOGIN=TOKEN,
        DB_PASSWORD=ENVIRONED,
        PYTHONPATH=f"{ROOT}:{ROOT / 'tests' / 'helpers'}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr, folder, folder / "0"


def test_no_file_and_no_output_holds_a_key(job):
    output, folder, _ = job
    files = [path for path in folder.rglob("*") if path.is_file()]
    holders = [
        str(path.relative_to(folder))
        for path in files
        for secret in (TYPED, TOKEN, ENVIRONED, "sig=s1gn", "token=t0k", "horse")
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
    config = store.read(path)["config"]
    assert f"api_key: {REDACTED}" in config
    assert f"login: {REDACTED}" in config


def test_weights_and_biases_have_a_mark_in_its_place(job):
    (run,) = offline_runs(job[2])
    notify = run.config["callbacks"]["notify"]
    assert (notify["api_key"], notify["login"]) == (REDACTED, REDACTED)
