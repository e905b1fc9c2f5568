"""Sweeps: a folder per job, nothing finished runs twice, a table at the end."""

import csv
import signal

import pytest
from experiment_helpers import ROOT, losses, run_training, write_sensor_shards
from omegaconf import OmegaConf
from rank_helpers import callback

SHORT = ["+experiment=sensor", "~evaluation", "trainer.max_steps=2", "sweep_metric=train/loss"]
OWN = {"COLUMNS": "250", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


def table(folder):
    with (folder / "sweep.csv").open(newline="") as file:
        return {row["job"]: row for row in csv.DictReader(file)}


def check_jobs(folder, overrides):
    """Each job has its folder, its configuration and its metrics, and its row in the table."""
    rows = table(folder)
    assert sorted(rows) == sorted(overrides)
    for job, (key, value) in overrides.items():
        assert rows[job]["status"] == "done"
        assert float(rows[job][key]) == value
        assert OmegaConf.select(OmegaConf.load(folder / job / ".hydra/config.yaml"), key) == value
        seen = losses(folder / job)
        assert sorted(seen) == [1, 2]
        assert float(rows[job]["train/loss"]) == float(seen[2])
    assert len({row["train/loss"] for row in rows.values()}) == len(rows)


def shown(output, folder):
    """The table in the terminal has the metric's value of every finished job."""
    text = output[output.index("┏") :]
    assert "train/loss" in text
    for row in table(folder).values():
        if row["finished"] == "True":
            assert f"{float(row['train/loss']):.4g}" in text
    assert str(folder / "sweep.csv") in text.replace("\n", "")


def test_a_sweep_that_was_killed_runs_only_what_is_not_finished(shards, tmp_path):
    kill = callback("KillJob", folder=str(tmp_path), job="1")
    words = ["-m", *SHORT, "seed=1,2,3", kill, f"hydra.sweep.dir={tmp_path}"]
    words += ["allowed_packages=[fault_callbacks]"]
    first = run_training(words, shards, **OWN)
    assert first.returncode == -signal.SIGKILL, first.stderr[-3000:]
    assert (tmp_path / "0" / "finished.json").exists()
    assert not (tmp_path / "1" / "finished.json").exists()
    before = (tmp_path / "0" / "metrics.csv").stat().st_mtime_ns
    again = run_training(words, shards, **OWN)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "job 0 was finished before" in again.stderr
    assert "job 1 was finished before" not in again.stderr
    assert (tmp_path / "0" / "metrics.csv").stat().st_mtime_ns == before
    check_jobs(tmp_path, {str(n): ("seed", n + 1) for n in range(3)})
    shown(again.stdout, tmp_path)


def test_two_jobs_of_two_ranks_have_their_own_folders(shards, tmp_path):
    words = ["-m", *SHORT, "optimizer.lr=0.001,0.002", f"hydra.sweep.dir={tmp_path}"]
    words += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    words += ["trainer.precision=32-true"]
    done = run_training(words, shards, timeout=500, **OWN)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "multirun.yaml", "sweep.csv"]
    check_jobs(tmp_path, {"0": ("optimizer.lr", 0.001), "1": ("optimizer.lr", 0.002)})
    shown(done.stdout, tmp_path)


def test_local_processes_run_the_jobs(shards, tmp_path):
    words = ["-m", *SHORT, "seed=1,2", "launcher=local", f"hydra.sweep.dir={tmp_path}"]
    done = run_training(words, shards, timeout=500, **OWN)
    assert done.returncode == 0, done.stderr[-3000:]
    check_jobs(tmp_path, {"0": ("seed", 1), "1": ("seed", 2)})
    shown(done.stdout, tmp_path)


def test_a_search_that_was_killed_resumes_from_its_study(shards, tmp_path):
    import optuna

    kill = callback("KillJob", folder=str(tmp_path), job="1")
    words = ["-m", *SHORT, "sweep=optuna", "hydra.sweeper.n_trials=3", kill]
    words += ["optimizer.lr=interval(1e-4,1e-2)", "allowed_packages=[fault_callbacks]"]
    words += [f"hydra.sweep.dir={tmp_path}"]
    first = run_training(words, shards, timeout=500, **OWN)
    assert first.returncode == -signal.SIGKILL, first.stderr[-3000:]
    again = run_training(words, shards, timeout=500, **OWN)
    assert again.returncode == 0, again.stderr[-3000:]
    study = optuna.load_study(study_name="sensor", storage=f"sqlite:///{tmp_path}/study.db")
    complete = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    rows = table(tmp_path)
    finished = [row for row in rows.values() if row["finished"] == "True"]
    assert len(complete) == len(finished) == 3
    assert sorted(t.value for t in complete) == sorted(float(r["train/loss"]) for r in finished)
    assert sorted(rows) == ["0", "1", "from2_0", "from2_1"]
    shown(again.stdout, tmp_path)
    assert "setup plugin" not in again.stdout
    third = run_training(words, shards, timeout=500, **OWN)
    assert third.returncode == 0, third.stderr[-3000:]
    assert sorted(table(tmp_path)) == sorted(rows)
