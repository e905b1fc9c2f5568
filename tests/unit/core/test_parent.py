"""No process of ours lives on behind the one that has started it."""

import os
import signal
import subprocess
import sys

import pytest
from marks import some
from orphans import ENDS, end_and_see, pids_in, started, wait_until

from multimodal.core.process import parent

CHILD = """
import os, signal, sys, time
from pathlib import Path
from multimodal.core.process.parent import ended_with_starter
folder, mode = sys.argv[1:]
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import multimodal.core.process.parent as parent
    parent.GRACE_S = 0.5
if mode == "saves":
    def save(number, frame):
        Path(folder, "saved").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
with ended_with_starter():
    Path(folder, f"pid_{os.getpid()}").touch()
    if mode == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        time.sleep(1000)
"""
PARENT = f"""
import os, subprocess, sys, time
from multimodal.core.process.parent import parent_of_children
subprocess.run([sys.executable, "-c", {CHILD!r}, *sys.argv[1:]],
               env=os.environ | parent_of_children())
"""


@pytest.mark.parametrize("number", some(ENDS, len(ENDS)))
@pytest.mark.parametrize("mode", ["plain", "saves", "stopped", "deaf"])
def test_a_child_ends_with_its_parent(tmp_path, mode, number):
    program = started(PARENT, str(tmp_path), mode)
    (child,) = pids_in(tmp_path, 1)
    if mode == "stopped":
        wait_until(lambda: is_stopped(child))
    assert end_and_see(program, [child], number) == [True]
    assert (tmp_path / "saved").exists() == (mode == "saves")


def is_stopped(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


def test_a_child_whose_parent_was_gone_before_it_looked_ends(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(60)
    host = parent.parent_of_children()[parent.PARENT].rpartition(":")[0]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), "plain"],
        env=os.environ | {parent.PARENT: f"{host}:{gone.pid}"}, timeout=120, check=False,
    )  # fmt: skip
    assert child.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    "value", ["", "elsewhere:1", "nonsense", f"{os.uname().nodename}:{os.getppid()}"]
)
def test_a_process_that_was_started_in_another_way_watches_nobody(monkeypatch, value):
    monkeypatch.setenv(parent.PARENT, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if value.endswith(str(os.getppid())):
        monkeypatch.setattr(os, "getppid", lambda: 1)  # the named process lives, behind a shell
    assert parent._starter() is None


def test_a_process_of_torchrun_watches_it(monkeypatch):
    monkeypatch.delenv(parent.PARENT, raising=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    assert parent._starter() == os.getppid()


POOL = """
import sys
from multimodal.data.packing.parallel import in_parallel
from orphan_jobs import work
in_parallel(work, [(sys.argv[1], True), (sys.argv[1], False)], 2, lambda done, total: None)
"""
LOADER = """
import sys
from orphan_jobs import Sleeping
from multimodal.data.loading.workers import Steps, make_loader
from multimodal.data.settings import LoaderSettings
loader = make_loader(Sleeping(sys.argv[1]), Steps(range(9)), LoaderSettings(2), persistent=True)
next(iter(loader))
"""


@pytest.mark.parametrize(
    "number", [ENDS[0], *(pytest.param(number, marks=pytest.mark.slow) for number in ENDS[1:])]
)
@pytest.mark.parametrize("program", [POOL, LOADER], ids=["pool", "loader"])
def test_no_worker_lives_on_behind_its_parent(tmp_path, program, number):
    process = started(program, str(tmp_path))
    pids = pids_in(tmp_path, 2)  # of the pool one has no work any more
    assert end_and_see(process, pids, number) == [True, True]
