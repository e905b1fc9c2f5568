"""A run that is killed leaves no rank, anchor or job of its behind, and the next start goes on."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from experiment_helpers import OWN_CONFIGS, ROOT, losses, write_sensor_shards
from orphans import ENDS, end_and_see, ends, handle_of, hear_hangups, wait_until
from rank_helpers import FAST, callback

from multimodal.core.process import lock
from multimodal.inference.checkpoint import store

LONG = ("trainer.max_steps=100000", "callbacks.checkpoint.every_n_train_steps=2")
OWN = "allowed_packages=[fault_callbacks]"
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def start(shards, tmp_path):
    """Starts trainings as a user does."""
    running = []

    def start(*words, configs=OWN_CONFIGS):
        command = [sys.executable, str(ROOT / "scripts" / "train.py")]
        command += ["--config-dir", str(configs), *words]
        path = f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}"
        with (tmp_path / "output.txt").open("w") as output:
            running.append(
                subprocess.Popen(
                    command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
                    preexec_fn=hear_hangups,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "SENSOR_SHARDS": str(shards),
                         "PYTHONPATH": path},
                )
            )  # fmt: skip
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


def processes():
    """Every process that has not ended, and its parent."""
    table = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                table[int(path.parent.name)] = int(parent)
    return table


def descendants(pid):
    table = processes()
    found = {pid}
    while more := {child for child, parent in table.items() if parent in found} - found:
        found |= more
    return found - {pid}


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("number", ENDS)
def test_no_rank_or_worker_lives_on_behind_the_first_rank(start, tmp_path, number, stopped):
    slow = callback("SlowSteps", folder=str(tmp_path), seconds=0.05)
    words = ["+experiment=sensor", *FAST, *LONG, *TWO, OWN, slow, "data.num_workers=2"]
    run = start(*words, f"hydra.run.dir={tmp_path / 'run'}")
    wait_until(lambda: len(list(tmp_path.glob("step_*"))) == 2)
    rest = descendants(run.pid)
    assert len(rest) >= 5  # a rank, and two workers of each
    handles = [handle_of(pid) for pid in rest]
    if stopped:
        os.kill(int((tmp_path / "step_1").read_text()), signal.SIGSTOP)
    run.send_signal(number)
    assert run.wait(120) == (143 if number == signal.SIGTERM else -number)
    assert all(ends(handle) for handle in handles)
    assert store.newest(tmp_path / "run" / "checkpoints") is not None


def test_no_rank_lives_on_that_has_not_begun_to_train(start, tmp_path):
    run = start("+experiment=sensor", *FAST, *LONG, *TWO, f"hydra.run.dir={tmp_path / 'run'}")
    wait_until(lambda: descendants(run.pid))
    assert all(end_and_see(run, descendants(run.pid), signal.SIGKILL))


@pytest.mark.parametrize("number", ENDS)
def test_no_anchor_lives_on_and_the_next_run_goes_on_with_it(start, tmp_path, number):
    configs = shutil.copytree(OWN_CONFIGS, tmp_path / "configs")
    long = (configs / "experiment" / "sensor.yaml").read_text()
    long = long.replace("max_steps: 60", "max_steps: 1500")
    (configs / "experiment" / "long.yaml").write_text(long)
    anchor = f"{{checkpoint: null, experiment: long, towers: [image], folder: {tmp_path}/kept}}"
    words = ["+experiment=sensor", *FAST, "trainer.max_steps=2", f"anchor={anchor}"]
    words += [f"hydra.run.dir={tmp_path / 'run'}"]
    run = start(*words, configs=configs)
    wait_until(lambda: list(tmp_path.glob("kept/long-*/metrics.csv")))
    (kept,) = (tmp_path / "kept").iterdir()
    rest = descendants(run.pid)
    assert lock.holder(kept).pid in rest
    assert all(end_and_see(run, rest, number))
    assert 0 < max(store.steps(kept / "checkpoints")) < 1500  # it got SIGTERM
    again = start(*words, configs=configs)
    assert again.wait(300) == 0, (tmp_path / "output.txt").read_text()[-3000:]
    assert sorted(losses(kept)) == list(range(1, 1501))


@pytest.mark.parametrize("number", ENDS)
def test_no_job_of_a_sweep_in_local_processes_lives_on(start, tmp_path, number):
    words = ["-m", "+experiment=sensor", *FAST, *LONG, "seed=1,2,3", "launcher=local"]
    run = start(*words, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    wait_until(lambda: len(list(tmp_path.glob("sweep/*/metrics.csv"))) == 2)
    rest = descendants(run.pid)
    assert {lock.holder(tmp_path / "sweep" / job).pid for job in "01"} <= rest
    assert all(end_and_see(run, rest, number))
    assert not (tmp_path / "sweep" / "2").exists()  # none is begun any more
    for job in "01":
        assert store.newest(tmp_path / "sweep" / job / "checkpoints") is not None
