"""SLURM, by stand-ins for its commands: submission, pre-emption, the way back to the queue."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import slurm_standin
from experiment_helpers import OWN_CONFIGS, ROOT, losses, write_sensor_shards
from rank_helpers import FAST, callback

from multimodal.inference.checkpoint import store
from multimodal.training.callbacks.stopping.stop import requeue_slurm_job

LIMIT = 600.0


@pytest.fixture
def slurm(tmp_path):
    """The environment of a machine with SLURM, and the folder of its stand-ins."""
    folder = tmp_path / "slurm"
    environment = slurm_standin.install(folder) | {
        "OMP_NUM_THREADS": "1",
        "SENSOR_SHARDS": str(write_sensor_shards(tmp_path / "shards")),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}",
    }
    yield folder, environment
    slurm_standin.end_all(folder)


def wait_for(path):
    end = time.monotonic() + LIMIT
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.1)
    return path.read_text()


def wait_for_end(folder, name):
    """Until SLURM, too, knows that the job has ended."""
    end = time.monotonic() + LIMIT
    while wait_for(folder / f"state_{name}") == "RUNNING":
        assert time.monotonic() < end, f"job {name} does not end"
        time.sleep(0.2)


def requeued(folder):
    return [call[1:] for call in slurm_standin.calls(folder) if call[0] == "scontrol"]


def ends(folder):
    """Job -> its exit codes, one for each time that it was started."""
    found: dict[str, list[int]] = {}
    for line in (folder / "ends.jsonl").read_text().splitlines():
        name, code = json.loads(line)
        found.setdefault(name, []).append(code)
    return found


@pytest.mark.quick
def test_a_job_and_a_task_of_an_array_are_queued_again_by_their_names(slurm, monkeypatch, capsys):
    folder, environment = slurm
    monkeypatch.setenv("PATH", environment["PATH"])
    monkeypatch.setenv("STANDIN_SLURM", environment["STANDIN_SLURM"])
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert not requeue_slurm_job()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert not requeue_slurm_job()  # SLURM knows no such job
    assert "WARNING: job 77 is not queued again: scontrol: no such job" in capsys.readouterr().err
    (folder / "state_77").write_text("RUNNING")
    assert requeue_slurm_job()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    (folder / "state_70_3").write_text("RUNNING")
    assert requeue_slurm_job()
    assert requeued(folder) == [["requeue", "77"], ["requeue", "77"], ["requeue", "70_3"]]
    assert {path.name for path in folder.glob("requeue_*")} == {"requeue_77", "requeue_70_3"}


def test_jobs_of_a_sweep_are_submitted_preempted_and_resumed(slurm, tmp_path):
    folder, environment = slurm
    slow = callback("SlowSteps", folder="${hydra:runtime.output_dir}", seconds=0.2)
    command = [sys.executable, "scripts/train.py", "-m", "--config-dir", str(OWN_CONFIGS),
               "+experiment=sensor", "launcher=slurm", "seed=0,1", "trainer.max_steps=12", *FAST,
               "callbacks.checkpoint.every_n_train_steps=null", slow,
               f"hydra.sweep.dir={tmp_path}/sweep",
               "allowed_packages=[fault_callbacks]"]  # fmt: skip
    with (tmp_path / "output.txt").open("w") as output:
        sweep = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        # The one as sbatch --signal asks for it, the other as submitit does, before the time is up.
        for job, number in (("0", signal.SIGUSR1), ("1", signal.SIGUSR2)):
            os.kill(int(wait_for(tmp_path / "sweep" / job / "step_0")), number)
        assert sweep.wait(LIMIT) == 0, (tmp_path / "output.txt").read_text()[-3000:]
    finally:
        sweep.kill()
    (submitted,) = [call for call in slurm_standin.calls(folder) if call[0] == "sbatch"]
    assert submitted
    assert sorted(requeued(folder)) == [["requeue", "1000_0"], ["requeue", "1000_1"]]
    for name in ("1000_0", "1000_1"):
        wait_for_end(folder, name)  # the result is there before its process has ended
    assert ends(folder) == {"1000_0": [143, 0], "1000_1": [143, 0]}
    for job in ("0", "1"):
        run = tmp_path / "sweep" / job
        assert sorted(losses(run)) == list(range(1, 13))
        first, *_, last = store.steps(run / "checkpoints")
        assert 3 <= first < last == 12
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row["seed"], row["finished"]) for row in rows] == [
        ("0", "0", "True"), ("1", "1", "True"),
    ]  # fmt: skip
    assert rows[0]["train/loss"] != rows[1]["train/loss"]


def test_tasks_of_srun_are_the_ranks_of_one_run(slurm, tmp_path):
    """Two tasks, one signalled to stop: one folder, one checkpoint, one `scontrol requeue`."""
    folder, environment = slurm
    slow = callback("SlowSteps", folder=str(tmp_path), seconds=0.2)
    words = [*FAST, "trainer.accelerator=cpu",
             "trainer.precision=32-true", "trainer.max_steps=12", f"'{slow}'",
             "callbacks.checkpoint.every_n_train_steps=null",
             "allowed_packages=[fault_callbacks]"]  # fmt: skip
    page = (ROOT / "docs" / "cluster.md").read_text()
    (text,) = re.findall(r"```sbatch\n(.*?)\n```", page, re.S)
    for before, after in (
        ("--nodes=2", "--nodes=1"), ("--ntasks-per-node=8", "--ntasks-per-node=2"),
        ("multimodal train",
         f"{sys.executable} {ROOT}/scripts/train.py --config-dir {OWN_CONFIGS}"),
        ("=clip_scratch trainer", "=sensor trainer"),
        ("#SBATCH --open-mode=append", f"#SBATCH --output={tmp_path}/output.txt"),
    ):  # fmt: skip
        assert before in text
        text = text.replace(before, after)
    script = tmp_path / "job.sh"
    script.write_text(f"{text} {' '.join(words)}\n")
    subprocess.run(["sbatch", str(script)], cwd=tmp_path, env=environment, check=True)
    wait_for(tmp_path / "step_0")
    os.kill(int(wait_for(tmp_path / "step_1")), signal.SIGUSR1)
    wait_for_end(folder, "1000")
    assert ends(folder) == {"1000": [143, 0]}, (tmp_path / "output.txt").read_text()[-3000:]
    assert requeued(folder) == [["requeue", "1000"]]
    run = tmp_path / "outputs" / "clip"
    assert sorted(losses(run)) == list(range(1, 13))
    first, last = store.steps(run / "checkpoints")
    assert 3 <= first < last == 12
