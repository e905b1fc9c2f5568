"""Weights and Biases: offline, without a network, after an error, and on resume."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
import wandb
from experiment_helpers import ROOT, losses, run_training, train_here, write_sensor_shards
from fault_callbacks import wandb_service
from rank_helpers import callback
from wandb_files import offline_runs

from multimodal.inference.checkpoint import store
from multimodal.training.loggers.wandb import WandbLogger, _end_service, bounded

SHORT = ("callbacks.checkpoint.every_n_train_steps=4", "~evaluation", "scheduler=constant")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def here(shards, monkeypatch, tmp_path):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    torch.set_num_threads(1)
    return tmp_path


def steps(run):
    """The optimizer steps whose loss a run has, in their order."""
    return [row["trainer/global_step"] for row in run.rows if "train/loss" in row]


def offline(folder, *words):
    wand = ("logger=wandb", "logger.wandb.offline=true", f"logger.wandb.save_dir={folder}")
    train_here(folder, *wand, *SHORT, "trainer.val_check_interval=4", *words)


def test_a_resumed_run_keeps_its_id_and_logs_no_step_twice(here):
    run, other = here / "run", here / "other"
    offline(run, "trainer.max_steps=6")
    assert wandb.run is None
    # As if killed after step 6: the newest checkpoint is that of step 4.
    store.steps(run / "checkpoints")[6].unlink()
    offline(run, "trainer.max_steps=8", "resume=auto")
    first, second = offline_runs(run)
    assert first.id == second.id != ""
    assert [steps(first), steps(second)] == [[1, 2, 3, 4, 5, 6], [7, 8]]
    score = "val/measured/image_to_sensor_r@1"
    validated = [[row["trainer/global_step"] for row in r.rows if score in row]
                 for r in (first, second)]  # fmt: skip
    assert validated == [[4], [8]]
    assert first.config["optimizer"]["lr"] == 0.005
    assert sorted(losses(run)) == list(range(1, 9))

    # In another folder it is the same run, unless an id is asked for.
    path = store.steps(run / "checkpoints")[4]
    offline(other, "trainer.max_steps=10", f"resume='{path}'")
    (moved,) = offline_runs(other)
    assert moved.id == first.id
    assert steps(moved) == [9, 10]


def test_a_killed_run_has_its_rows_and_resumes_with_the_next(shards, tmp_path):
    kill = callback("Kill", folder=str(tmp_path), step=6)
    slow = callback("SlowSteps", folder=str(tmp_path), seconds=1.0)
    words = ["+experiment=sensor", *SHORT, "logger=wandb", "logger.wandb.offline=true"]
    words += ["trainer.max_steps=8", f"hydra.run.dir={tmp_path}", slow, kill]
    words += ["allowed_packages=[fault_callbacks]"]
    own = {"WANDB_MODE": "offline", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}"}
    killed = run_training(words, shards, **own)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    time.sleep(3)  # what was its service is on its own
    words.remove(kill)
    resumed = run_training([*words, "resume=auto"], shards, **own)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    first, second = offline_runs(tmp_path)
    assert first.id == second.id != ""
    # What was logged in the last half a second may be lost.
    assert steps(first) in ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6])
    assert steps(second) == [7, 8]


def test_a_service_that_dies_ends_the_logging_only(shards, tmp_path):
    """The library's own process, in which the rows are; the system may kill it for memory."""
    words = ["+experiment=sensor", *SHORT, "logger=wandb", "logger.wandb.offline=true"]
    words += ["trainer.max_steps=6", "+callbacks.fault={_target_: fault_callbacks.KillService}"]
    words += ["allowed_packages=[fault_callbacks]", f"hydra.run.dir={tmp_path}"]
    own = {"WANDB_MODE": "offline", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}"}
    done = run_training(words, shards, **own)  # what is left of the library is not for other tests
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Weights and Biases has failed" in done.stderr
    (run,) = offline_runs(tmp_path)
    assert 6 not in steps(run)
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]


# It is waited for in the middle of the training, or at the end only.
@pytest.mark.parametrize(("row_bytes", "seconds"), [(2**22, 10), (0, 20)])
def test_a_service_that_is_stopped_does_not_hold_the_training(row_bytes, seconds, shards, tmp_path):
    stop = callback("StopService", row_bytes=row_bytes)
    words = ["+experiment=sensor", *SHORT, "logger=wandb", "logger.wandb.offline=true"]
    words += ["trainer.max_steps=6", "logger.wandb.timeout_s=10", stop]
    words += ["allowed_packages=[fault_callbacks]", f"hydra.run.dir={tmp_path}"]
    own = {"WANDB_MODE": "offline", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}"}
    done = run_training(words, shards, timeout=240, **own)
    assert done.returncode == 0, done.stderr[-3000:]
    (service,) = re.findall(r"^stopped (\d+)$", done.stderr, re.MULTILINE)
    assert not Path(f"/proc/{service}").exists()
    output = f"Weights and Biases has failed (its service has not answered for {seconds} s)"
    assert done.stderr.count("WARNING: Weights and Biases") == done.stderr.count(output) == 1
    assert "Traceback" not in done.stderr
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]


def test_a_service_that_is_stopped_holds_neither_a_start_nor_the_next_run(
    here, monkeypatch, capsys
):
    monkeypatch.setattr("multimodal.training.loggers.wandb.START_S", 1.0)
    first = WandbLogger("p", offline=True, save_dir=str(here / "first"), timeout_s=0.5)
    wandb.setup()
    os.kill(wandb_service(), signal.SIGSTOP)
    for step in (1, 2):
        first.log_metrics({"a": 1.0}, step)
    first.finish(failed=False)
    output = capsys.readouterr().err
    assert output.count("WARNING: Weights and Biases") == 1
    assert "has failed (its service has not answered for 2 s)" in output
    with pytest.raises(LookupError):
        wandb_service()

    second = WandbLogger("p", offline=True, save_dir=str(here / "second"))
    second.log_metrics({"a": 1.0}, 1)
    second.finish(failed=False)
    assert "WARNING: Weights and Biases" not in capsys.readouterr().err
    (run,) = offline_runs(here / "second")
    assert [row["trainer/global_step"] for row in run.rows] == [1]


def test_the_end_of_a_service_that_is_stopped_is_waited_for_in_bounded_time(here):
    wandb.setup()
    os.kill(wandb_service(), signal.SIGSTOP)
    with pytest.raises(TimeoutError, match=r"has not answered for 0\.5 s"), bounded(0.5):
        _end_service()
    with pytest.raises(LookupError):
        wandb_service()


def test_the_report_and_its_figures_are_in_the_run(here):
    words = ["logger=wandb", "logger.wandb.offline=true", f"logger.wandb.save_dir={here}"]
    words += ["trainer.max_steps=2", "trainer.val_check_interval=2"]
    train_here(here, *words, experiment="sensor_fusion")
    (run,) = offline_runs(here)
    assert "report.html" in run.saved
    page = (run.files / "report.html").read_text()
    assert page == (here / "report.html").read_text()
    assert "highest" in page
    score = json.loads((here / "metrics.json").read_text())["unseen"]["highest"]
    assert run.summary["held-out/unseen/highest/accuracy"] == score["accuracy"]
    pictures = sorted(path.read_bytes() for path in here.glob("attention/unseen/*.png"))
    logged = sorted(path.read_bytes() for path in (run.files / "media").rglob("*.png"))
    assert len(pictures) == 2
    assert logged == pictures


@pytest.mark.quick
def test_a_run_that_is_not_resumed_is_another_and_one_without_a_checkpoint_is_resumed(tmp_path):
    note = tmp_path / "wandb.json"
    note.write_text('{"id": "abc", "step": 3, "logged": ["a"]}\n')
    fresh = WandbLogger("p", save_dir=str(tmp_path))
    assert fresh.run_id != WandbLogger("p", save_dir=str(tmp_path)).run_id
    fresh.resume(None, -1, note)
    assert fresh.run_id == "abc"
    fixed = WandbLogger("p", id="mine", save_dir=str(tmp_path))
    fixed.resume("abc", 2, note)
    assert fixed.run_id == "mine"


class Run:
    """A run of the library that can break."""

    def __init__(self):
        self.rows, self.broken, self.ended = [], False, None

    def log(self, row):
        if self.broken:
            raise BrokenPipeError("the service is gone")
        self.rows.append(row)

    def finish(self, exit_code):
        self.ended = exit_code


def made(folder, run):
    logger = WandbLogger("p", save_dir=str(folder))
    logger._experiment = run
    return logger


@pytest.mark.quick
def test_steps_go_up_and_a_step_gets_what_it_lacks(tmp_path):
    run = Run()
    logger = made(tmp_path, run)
    for step, row in ((1, {"a": 1.0}), (2, {"a": 2.0}), (2, {"a": 9.0, "b": 3.0}), (1, {"c": 1.0})):
        logger.log_metrics(row, step)
    step = "trainer/global_step"
    assert run.rows == [{"a": 1.0, step: 1}, {"a": 2.0, step: 2}, {"b": 3.0, step: 2}]
    again = made(tmp_path, Run())
    again.resume(logger.run_id, 1, tmp_path / "wandb.json")
    for number in (1, 2, 3):
        again.log_metrics({"a": 1.0, "d": 1.0}, number)
    assert again.experiment.rows == [{"d": 1.0, step: 2}, {"a": 1.0, "d": 1.0, step: 3}]


@pytest.mark.quick
def test_an_error_while_logging_ends_the_logging_only(tmp_path, capsys):
    run = Run()
    logger = made(tmp_path, run)
    logger.log_metrics({"a": 1.0}, 1)
    run.broken = True
    logger.log_metrics({"a": 1.0}, 2)
    run.broken = False
    logger.log_metrics({"a": 1.0}, 3)
    logger.report(Path(__file__), {})
    logger.finish(failed=False)
    assert [row["trainer/global_step"] for row in run.rows] == [1]
    output = capsys.readouterr().err
    assert output.count("Weights and Biases has failed (the service is gone)") == 1


class PipedRun(Run):
    """A run that writes to a process through a pipe, as the library does through a socket."""

    def __init__(self):
        super().__init__()
        self.service = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def log(self, row):
        self.service.stdin.write(b"x" * 2**20)  # blocks: a pipe holds 64 KiB
        self.service.stdin.flush()
        self.rows.append(row)

    def finish(self, exit_code):
        self.service.wait()


@pytest.fixture
def piped(monkeypatch):
    run = PipedRun()
    monkeypatch.setattr("multimodal.training.loggers.wandb._service", lambda: run.service)
    yield run
    run.service.kill()
    with contextlib.suppress(BrokenPipeError):
        run.service.stdin.close()
    run.service.wait()


@pytest.mark.quick
@pytest.mark.parametrize("while_logging", [True, False])
def test_a_stopped_process_is_waited_for_in_bounded_time(while_logging, piped, tmp_path, capsys):
    logger = made(tmp_path, piped)
    logger.log_metrics({"a": 1.0}, 1)
    logger._timeout_s = 0.5
    piped.service.send_signal(signal.SIGSTOP)
    if while_logging:
        for step in (2, 3):
            logger.log_metrics({"a": 1.0}, step)
    logger.finish(failed=False)
    assert [row["trainer/global_step"] for row in piped.rows] == [1]
    assert piped.service.returncode == -signal.SIGKILL
    output = capsys.readouterr().err
    limit = 0.5 if while_logging else 1
    assert output.count(f"its service has not answered for {limit:g} s") == 1
    assert output.count("WARNING") == 1


@pytest.mark.quick
def test_a_process_that_was_stopped_for_a_while_gets_every_row(piped, tmp_path, capsys):
    logger = made(tmp_path, piped)
    piped.service.send_signal(signal.SIGSTOP)
    resume = threading.Timer(0.3, piped.service.send_signal, [signal.SIGCONT])
    resume.start()
    for step in (1, 2):
        logger.log_metrics({"a": 1.0}, step)
    resume.join()
    assert [row["trainer/global_step"] for row in piped.rows] == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.fixture
def server(request):
    """An address that refuses, or one that takes what comes and never answers."""
    listening = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    if request.param == "refuses":
        listening.close()
        yield address
        return
    taken, ended = [], threading.Event()
    listening.settimeout(0.2)

    def take():
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                taken.append(listening.accept()[0])

    thread = threading.Thread(target=take)
    thread.start()
    yield address
    ended.set()
    thread.join()
    assert taken, "nobody has called"
    for connection in (*taken, listening):
        connection.close()


@pytest.mark.parametrize("server", ["refuses", "silent"], indirect=True)
def test_without_a_network_training_ends_well_and_says_so(server, shards, tmp_path):
    words = ["+experiment=sensor", *SHORT, "logger=wandb", "logger.wandb.timeout_s=5"]
    words += ["trainer.max_steps=3", f"hydra.run.dir={tmp_path}"]
    environment = {
        "WANDB_API_KEY": "0123456789" * 4,
        "WANDB_BASE_URL": server,
        "WANDB_MODE": "online",
    }
    done = run_training(words, shards, timeout=240, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING: Weights and Biases cannot be reached" in done.stderr
    assert "upload it by `wandb sync`" in done.stderr
    (run,) = offline_runs(tmp_path)
    assert steps(run) == [1, 2, 3]
    assert sorted(losses(tmp_path)) == [1, 2, 3]
