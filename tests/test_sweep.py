"""Sweeps: a folder per job, nothing finished runs twice, a table at the end."""

import csv
import signal

import pytest
from experiment_helpers import ROOT, losses, run_training, write_sensor_shards
from omegaconf import OmegaConf
from rank_helpers import callback

SHORT = ["+experiment=sensor", "~evaluation", "trainer.max_steps=2", "sweep_metric=train/loss"]
OWN = {"COLUMNS": "250", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


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
        assert rows[job]["finished"] == "True"
        assert float(rows[job][key]) == value
        assert OmegaConf.select(OmegaConf.load(folder / job / ".hydra/config.yaml"), key) == value
        seen = losses(folder / job)
        assert sorted(seen) == [1, 2]
        assert float(rows[job]["train/loss"]) == float(seen[2])
    assert len({row["train/loss"] for row in rows.values()}) == len(rows)


def shown(output, folder):
    """The table in the terminal has the metric and the last digits of every job."""
    text = output[output.index("┏") :]
    assert "train/loss" in text
    for row in table(folder).values():
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
