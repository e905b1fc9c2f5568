"""A sweep with failing jobs: the others run, the table is there, the next start runs the rest."""

import csv
import os
import signal
import sys
from pathlib import Path

import pytest

from multimodal.cli import main
from multimodal.config import ConfigError, ConfigProblem

CONFIG = """
value: 0
folder: .
sweep_metric: null
hydra:
  callbacks:
    sweep_record:
      _target_: multimodal.cli.SweepRecord
"""


def job(cfg):
    """Fails in a way of its own until a file says that it is repaired."""
    from hydra.core.hydra_config import HydraConfig

    folder = Path(HydraConfig.get().runtime.output_dir)
    with Path(cfg.folder, "calls").open("a") as file:
        file.write(f"{cfg.value}\n")
    if not Path(cfg.folder, "repaired").exists():
        if cfg.value == 2:
            raise ConfigError([ConfigProblem("value", "is 2")])
        if cfg.value == 3:
            raise RuntimeError("three\nis too many")
        if cfg.value == 4:
            sys.exit(2)
        if cfg.value == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if cfg.value == 6:
            raise KeyboardInterrupt
    (folder / "metrics.csv").write_text(f"step,loss\n1,{cfg.value / 10}\n")


@pytest.fixture
def sweep(tmp_path, monkeypatch, capfd):
    """Runs a sweep in this process; returns its status, its table, the values run, its output."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tiny.yaml").write_text(CONFIG)
    monkeypatch.setenv("COLUMNS", "250")

    def run(*words):
        (tmp_path / "calls").unlink(missing_ok=True)
        argv = ["job.py", "--config-dir", str(tmp_path / "own"), "--config-name", "tiny", "-m"]
        argv += [f"folder={tmp_path}", f"hydra.sweep.dir={tmp_path}/sweep", *words]
        monkeypatch.setattr(sys, "argv", argv)
        status = 0
        try:
            main.run("train", job)
        except SystemExit as ended:
            status = ended.code
        with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
            table = {row["job"]: row for row in csv.DictReader(file)}
        calls = tmp_path / "calls"
        values = sorted(calls.read_text().split()) if calls.exists() else []
        return status, table, values, "".join(capfd.readouterr())

    run.folder = tmp_path
    return run


def states(table):
    return [row["status"] for row in table.values()]


FAILURES = [
    "done",
    "failed: 1 error in the configuration: value; is 2",
    "failed: RuntimeError: three; is too many",
    "failed: SystemExit: 2",
]


@pytest.mark.quick
@pytest.mark.parametrize(
    "more", [[], pytest.param(["hydra.sweeper.max_batch_size=1"], marks=pytest.mark.slow)]
)
def test_the_others_run_and_the_next_start_runs_only_what_failed(sweep, more):
    status, table, values, output = sweep("value=1,2,3,4", *more)
    assert status == 1
    assert values == ["1", "2", "3", "4"]
    assert states(table) == FAILURES
    assert [row["value"] for row in table.values()] == ["1", "2", "3", "4"]
    assert float(table["0"]["loss"]) == 0.1
    assert "of 4 jobs of the sweep 3 failed" in output
    assert "┏" in output
    assert output.count("Traceback") == 1  # the fault of ours
    (sweep.folder / "repaired").touch()
    status, table, values, _ = sweep("value=1,2,3,4", *more)
    assert (status, values) == (0, ["2", "3", "4"])
    assert states(table) == ["done"] * 4
    status, table, values, _ = sweep("value=1,2,3,4", *more)
    assert (status, values, states(table)) == (0, [], ["done"] * 4)


@pytest.mark.quick
def test_an_interrupted_sweep_has_its_table(sweep):
    with pytest.raises(KeyboardInterrupt):
        sweep("value=1,6,7")
    with (sweep.folder / "sweep" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done", "failed: KeyboardInterrupt", "not run"]
    assert [row["value"] for row in rows] == ["1", "6", "7"]


@pytest.mark.quick
def test_two_sweeps_do_not_share_a_folder(sweep):
    from multimodal.core.process import lock

    assert sweep("value=1,7")[0] == 0
    with lock.held(sweep.folder / "sweep"):
        status, _, values, output = sweep("value=1,7")
    assert (status, values) == (2, [])
    assert "is in use by another run" in output
    status, table, values, _ = sweep("value=1,8")
    assert (status, values) == (1, [])  # of another sweep
    assert table["0"]["status"] == "done"
    assert "holds a job of another sweep (" in table["1"]["status"]


def test_a_search_has_failing_trials_and_goes_on(sweep):
    words = ["hydra/sweeper=optuna", "value=1,2,3,7", "sweep_metric=loss"]
    words += ["hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=4"]
    words += ["hydra.sweeper.max_failure_rate=1.0", "hydra.sweeper.study_name=tiny"]
    words += [f"hydra.sweeper.storage=sqlite:///{sweep.folder}/study.db"]
    status, table, values, output = sweep(*words)
    assert status == 1, output
    assert values == ["1", "2", "3", "7"]
    assert sorted(states(table)) == sorted([*FAILURES[:3], "done"])


def test_a_job_process_that_is_killed_fails_alone(sweep):
    words = ["value=1,5,3,7", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    status, table, values, output = sweep(*words)
    assert status == 1, output
    assert set(values) == {"1", "5", "3", "7"}
    assert [state.split(" (")[0] for state in states(table)] == [
        "done", "failed: its process was killed", FAILURES[2], "done",
    ]  # fmt: skip
    (sweep.folder / "repaired").touch()
    status, table, values, output = sweep(*words)
    assert (status, values) == (0, ["3", "5"]), output
    assert states(table) == ["done"] * 4
