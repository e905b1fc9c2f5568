"""Every line that a program prints or logs is one that its user wants."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from data_helpers import image_bytes
from experiment_helpers import OWN_CONFIGS, ROOT, run_training, write_sensor_shards
from known_lines import STDERR, STDOUT, noise, strange

# One Python for many programs: each prints its name first, on both streams.
PROGRAMS = """
import json, sys
from multimodal.cli.__main__ import main

for name, words, status in json.loads(sys.argv[1]):
    for stream in (sys.stdout, sys.stderr):
        print("=====", name, file=stream, flush=True)
    sys.argv = ["multimodal", *words]
    try:
        main()
        ended = 0
    except SystemExit as end:
        ended = end.code or 0
    assert ended == status, (name, ended)
"""
SHORT = ["trainer.max_steps=4", "trainer.val_check_interval=2", "data.batch_size=16"]
WIDE = {"COLUMNS": "300"}  # no line of a table is wrapped
TWO_RANKS = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


def programs(commands, shards):
    """Standard output and error of programs that run in one process, one after the other."""
    command = [sys.executable, "-c", PROGRAMS, json.dumps(commands)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "SENSOR_SHARDS": str(shards), **WIDE}
    done = subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def pictures(folder):
    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        (folder / f"{number}.png").write_bytes(image_bytes(pixels))
    return folder


def test_no_program_says_what_nobody_asked_for(shards, tmp_path):
    own = ["--config-dir", str(OWN_CONFIGS)]
    sensor = [*own, "+experiment=sensor", *SHORT]
    run, swept, table = tmp_path / "run", tmp_path / "swept", tmp_path / "table.parquet"
    photos = pictures(tmp_path / "photos")
    longer = [word.replace("steps=4", "steps=6") for word in sensor]
    checkpoint = f"checkpoint='{run}/checkpoints/step=00000006.ckpt'"
    folder = [f"hydra.run.dir={tmp_path}/other"]
    commands = [
        ("train", ["train", *sensor, f"hydra.run.dir={run}"], 0),
        ("resume", ["train", *longer, "resume=auto", f"hydra.run.dir={run}"], 0),
        ("sweep", ["train", "-m", *sensor, "seed=1,2", f"hydra.sweep.dir={swept}"], 0),
        ("evaluate", ["evaluate", checkpoint, *folder], 0),
        ("embed", ["embed", checkpoint, f"input={photos}", f"output={table}", *folder], 0),
        ("search", ["search", checkpoint, f"index={table}", f"query={photos}/0.png", *folder], 0),
        ("pack", ["shards", str(photos), str(tmp_path / "packed")], 0),
        ("index", ["shards", "index", str(tmp_path / "packed")], 0),
        ("verify", ["shards", "verify", str(tmp_path / "packed")], 0),
        ("fault", ["train", *sensor, "optimizer.ler=1"], 2),
        ("check", ["train", *sensor, "optimizer.lr=-1", *folder], 2),
    ]
    done = programs(commands, shards)
    named = rf"|===== ({'|'.join(name for name, *_ in commands)})"
    assert strange(done.stdout, [*STDOUT, named]) == []
    assert strange(done.stderr, [*STDERR, named]) == []
    assert noise("", "", tmp_path) == []


@pytest.mark.parametrize("experiment", ["clip_scratch", "fusion"])
def test_experiments_of_the_samples_are_silent(experiment, tmp_path):
    words = [f"+experiment={experiment}", "debug=fast", f"hydra.run.dir={tmp_path}"]
    done = run_training(words, **WIDE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert noise(done.stdout, done.stderr, tmp_path) == []


@pytest.mark.parametrize("experiment", ["clip_scratch", "fusion", "imagebind_scratch"])
def test_two_ranks_and_their_resume_are_silent(experiment, tmp_path):
    """An anchor may be trained first; towers are unused in some steps, in all, and in none."""
    words = [f"+experiment={experiment}", "debug=fast", *TWO_RANKS, "data.batch_size=16"]
    words += [f"hydra.run.dir={tmp_path}"]
    for more in ([], ["trainer.max_steps=6", "resume=auto"]):
        done = run_training([*words, *more], **WIDE)
        assert done.returncode == 0, done.stderr[-3000:]
        assert noise(done.stdout, done.stderr, tmp_path) == []
        assert done.stderr.count("resuming from") == len(more) / 2  # one rank says it


def test_local_processes_of_a_sweep_with_workers_are_silent(shards, tmp_path):
    words = ["-m", "+experiment=sensor", *SHORT, "data.num_workers=1", "seed=1,2"]
    done = run_training([*words, "launcher=local", f"hydra.sweep.dir={tmp_path}"], shards)
    assert done.returncode == 0, done.stderr[-3000:]
    assert noise(done.stdout, done.stderr, tmp_path) == []
