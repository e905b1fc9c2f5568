"""One run per folder: who is refused, who takes over, and how a folder with a run is kept."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from multimodal.cli import main
from multimodal.cli.jobs.folder import RunFolderError, refuse_to_start_over
from multimodal.core.process import lock
from multimodal.core.process.lock import FolderInUseError

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from multimodal.core.process import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def record(folder):
    return json.loads((folder / lock.NAME).read_text())


def test_the_second_is_rejected_with_host_process_and_start_of_the_first(other, tmp_path):
    with pytest.raises(FolderInUseError) as caught, lock.held(tmp_path):
        pass
    first = record(tmp_path)
    assert first["pid"] == other.pid
    for part in (first["host"], f"process {other.pid}", first["started"], "hydra.run.dir="):
        assert part in str(caught.value)


def test_a_dead_process_is_taken_over_from_and_a_free_folder_is_left_clean(other, tmp_path, capsys):
    other.kill()
    other.wait()
    with lock.held(tmp_path):
        assert record(tmp_path)["pid"] == os.getpid()
        assert f"process {other.pid}" in capsys.readouterr().err
        with pytest.raises(FolderInUseError), lock.held(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    with lock.held(tmp_path):
        pass
    assert capsys.readouterr().err == ""


def test_a_process_id_that_is_used_again_holds_nothing(other, tmp_path):
    left = {**record(tmp_path), "pid": os.getppid(), "born": "1"}
    other.kill()
    other.wait()
    (tmp_path / lock.NAME).write_text(json.dumps(left))
    with lock.held(tmp_path):
        pass


def test_a_run_that_is_stopped_still_holds_its_folder(other, tmp_path):
    os.kill(other.pid, signal.SIGSTOP)
    with pytest.raises(FolderInUseError), lock.held(tmp_path):
        pass
    other.send_signal(signal.SIGCONT)


def test_data_workers_that_outlive_a_killed_run_do_not_hold_its_folder(tmp_path):
    script = HOLD.replace(
        'print("held"', 'import os\n    child = os.fork() or sys.stdin.read()\n    print("held"'
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"  # the child waits for the end of its input
    process.kill()
    process.wait()
    with lock.held(tmp_path):
        pass
    process.stdin.close()


def another_machine(folder):
    there = {**record(folder), "host": "node17", "machine": "node17 x y"}
    os.pwrite(lock_file := os.open(folder / lock.NAME, os.O_WRONLY), json.dumps(there).encode(), 0)
    os.ftruncate(lock_file, len(json.dumps(there)))
    os.close(lock_file)


def test_on_another_machine_the_heartbeat_decides(other, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_SILENT_S", 0.5)
    monkeypatch.setattr(lock, "_BEAT_S", 0.1)
    # As where a mount keeps locks to itself: the other's system lock is not seen here.
    monkeypatch.setattr(lock.fcntl, "lockf", lambda *_: None)
    another_machine(tmp_path)
    stamps = iter(range(100))
    monkeypatch.setattr(lock, "_stamp", lambda _: next(stamps))
    with pytest.raises(FolderInUseError, match="host node17"), lock.held(tmp_path):
        pass
    monkeypatch.setattr(lock, "_stamp", lambda _: 5)
    with lock.held(tmp_path):
        assert record(tmp_path)["pid"] == os.getpid()


def test_the_heartbeat_moves(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_S", 0.01)
    with lock.held(tmp_path):
        os.utime(tmp_path / lock.NAME, (1, 1))
        first = lock._stamp(tmp_path / lock.NAME)
        for _ in range(10_000):
            if lock._stamp(tmp_path / lock.NAME) != first:
                break
            lock.threading.Event().wait(0.01)
        assert lock._stamp(tmp_path / lock.NAME) > first


def test_without_locks_of_the_system_the_process_is_looked_up(other, tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(lock.errno.ENOLCK, "no locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", unsupported)
    monkeypatch.setattr(lock.time, "sleep", lambda _: None)
    with pytest.raises(FolderInUseError, match=f"process {other.pid}"), lock.held(tmp_path):
        pass
    other.kill()
    other.wait()
    with lock.held(tmp_path):
        assert record(tmp_path)["pid"] == os.getpid()


def test_a_copy_of_the_folder_is_held_by_nobody(other, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / lock.NAME).write_bytes((tmp_path / lock.NAME).read_bytes())
    with lock.held(copy):
        pass


@pytest.mark.parametrize("left", ["metrics.csv", "checkpoints/step=00000003.ckpt"])
def test_a_run_is_not_begun_anew_over_another(left, tmp_path):
    path = tmp_path / left
    path.parent.mkdir(exist_ok=True)
    path.write_text("step\n")
    for resume in (None, "elsewhere/checkpoints/step=00000001.ckpt"):
        with pytest.raises(RunFolderError) as caught:
            refuse_to_start_over(resume, tmp_path)
        for part in (str(tmp_path), path.name, "resume=auto", "hydra.run.dir=", "rm -r"):
            assert part in str(caught.value)
    refuse_to_start_over("auto", tmp_path)
    refuse_to_start_over(str(tmp_path / "checkpoints" / "step=00000001.ckpt"), tmp_path)


def train(monkeypatch, job, *words):
    monkeypatch.setattr(sys, "argv", ["train", "+experiment=clip_scratch", *words])
    try:
        main.run("train", job)
    except SystemExit as ended:
        return ended.code
    return 0


def test_a_command_that_is_rejected_leaves_the_folder_as_it_is(
    other, tmp_path, monkeypatch, capsys
):
    def job(_):
        raise AssertionError("the job has begun")

    words = [f"hydra.run.dir='{tmp_path}'"]
    assert train(monkeypatch, job, *words) == 2
    assert f"process {other.pid}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]
    other.kill()
    other.wait()
    (tmp_path / "metrics.csv").write_text("step\n")
    assert train(monkeypatch, job, *words) == 2
    assert "resume=auto" in capsys.readouterr().err
    assert not (tmp_path / ".hydra").exists()


def test_a_run_killed_before_its_first_checkpoint_goes_on(tmp_path, monkeypatch):
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,0.5\n")
    begun = []
    words = [f"hydra.run.dir='{tmp_path}'", "resume=auto"]
    assert train(monkeypatch, lambda cfg: begun.append(cfg.name), *words) == 0
    assert begun == ["clip_scratch"]


def test_other_ranks_share_the_lock_of_the_first(other, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    begun = []
    words = [f"hydra.run.dir='{tmp_path}'", "hydra.output_subdir=null"]
    assert train(monkeypatch, lambda cfg: begun.append(cfg.name), *words) == 0
    assert begun == ["clip_scratch"]
