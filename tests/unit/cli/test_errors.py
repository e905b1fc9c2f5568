"""Errors: a message for the user, a traceback for a bug."""

import logging
import pickle
import subprocess
import sys

import pytest

from multimodal.cli.jobs.start_time import StartTimeError
from multimodal.cli.jobs.sweep import SweepError
from multimodal.config import ConfigError, ConfigProblem
from multimodal.core.errors import UserError
from multimodal.core.process.exits import errors_end_the_program
from multimodal.data.errors import (
    BadSampleError,
    DataMismatchError,
    ShardError,
    TooManyBadSamplesError,
)
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.models.pretrained.keys import WeightsError
from multimodal.training.anchor import AnchorError
from multimodal.training.callbacks.nonfinite import NonFiniteError

FAULT = ConfigError([ConfigProblem("optimizer.lr", "given -1, expected 0 or more")])
USER_ERRORS = [
    FAULT,
    BadSampleError("decode", "what"),
    ShardError("a.tar", 512, "cut"),
    *(
        kind("what")
        for kind in (
            AnchorError, CheckpointError, NonFiniteError, DataMismatchError, SweepError,
            TooManyBadSamplesError, StartTimeError, WeightsError,
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("error", USER_ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_for_the_user_ends_with_its_message_and_status(error, capsys):
    assert isinstance(error, UserError)
    with pytest.raises(SystemExit) as ended, errors_end_the_program():
        raise error
    assert ended.value.code == (2 if isinstance(error, ConfigError) else 1)
    assert capsys.readouterr().err == f"{error}\n"


@pytest.mark.parametrize("error", USER_ERRORS, ids=lambda error: type(error).__name__)
def test_it_travels_between_processes(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


def test_a_path_that_the_system_refuses_needs_no_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended, errors_end_the_program():
        (tmp_path / "missing").read_text()
    assert ended.value.code == 1
    assert (
        capsys.readouterr().err
        == f"{tmp_path}/missing: No such file or directory; expected an existing path\n"
    )


def test_paths_of_another_kind_come_with_what_to_do(tmp_path, capsys):
    file, loop = tmp_path / "file", tmp_path / "loop"
    file.write_text("")
    loop.symlink_to(loop)
    long = tmp_path / ("x" * 5000)
    for wrong, advice in (
        (lambda: (file / "inside").mkdir(), "a file is where a folder is needed"),
        (lambda: file.mkdir(), "a file is where a folder is needed"),
        (lambda: tmp_path.read_text(), "a folder is where a file is expected"),
        (lambda: loop.read_text(), "the link leads to itself"),
        (lambda: long.read_text(), "name a shorter path"),
    ):
        with pytest.raises(SystemExit), errors_end_the_program():
            wrong()
        said = capsys.readouterr().err
        assert advice in said
        assert len(said) < 500


@pytest.mark.parametrize("error", [RuntimeError("ours"), KeyError("x"), OSError("no path")])
def test_a_fault_of_ours_keeps_its_traceback_once(error, capsys):
    with pytest.raises(SystemExit) as ended, errors_end_the_program():
        raise error
    assert ended.value.code == 1
    assert capsys.readouterr().err.count("Traceback") == 1


def test_the_traceback_of_any_error_on_request(monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as ended, errors_end_the_program():
        raise FAULT
    assert ended.value.code == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_job_inside_a_program_ends_it_once(capsys):
    handler = logging.FileHandler.handleError
    with pytest.raises(SystemExit) as ended, errors_end_the_program(), errors_end_the_program():
        raise FAULT
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{FAULT}\n"
    assert logging.FileHandler.handleError is handler


UNCLOSED = """
import atexit, gc, sys
from multimodal.core.process.exits import skip_last_collection

class Run:
    def __init__(self):
        self.me = self  # garbage at the end, as a trainer and its callbacks are
        self.file = open(sys.argv[1], "w")
        self.bytes = open(sys.argv[2], "wb")
        self.file.write("the last row")
        self.bytes.write(b"the last row")

    def __del__(self):
        print("collected")

gc.disable()
atexit.register(skip_last_collection)
Run()
open(sys.argv[1] + ".closed", "w").close()
sys.exit(3)
"""


def test_the_end_of_a_program_collects_nothing_and_loses_nothing(tmp_path):
    files = [tmp_path / "text", tmp_path / "bytes"]
    command = [sys.executable, "-c", UNCLOSED, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    assert [path.read_text() for path in files] == ["the last row"] * 2
