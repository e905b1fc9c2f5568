"""How the tests are collected and shared out, and fixtures of several files."""

import contextlib
import functools
import gc
import logging
import os
import resource
import subprocess
import tempfile
from pathlib import Path

import pytest
from _pytest.logging import catching_logs
from kept_compositions import keep_compositions
from torch.testing import _comparison

from multimodal.core.process.lean_imports import import_lightning

import_lightning()  # as the command line does
keep_compositions()
# Tests make millions of short-lived containers: looking through them is a tenth of their time.
gc.set_threshold(50_000, 20, 50)
# No test compares distributed tensors as such, and to import them takes a rank as long as torch.
_comparison._HAS_DTENSOR = False

SMALL = 2 << 20


def _attach_to_the_root(catching: catching_logs) -> logging.Handler:
    """Pytest's own looks through some 1,500 loggers, for every phase of every test, for those that
    do not hand on: a thirtieth of the time of all tests, which read none of them by ``caplog``."""
    root = logging.getLogger()
    if catching.level is not None:
        catching.handler.setLevel(catching.level)
        catching.orig_level = root.level
        root.setLevel(min(root.level, catching.level))
    root.addHandler(catching.handler)
    catching.attached_loggers.append(root)
    return catching.handler


catching_logs.__enter__ = _attach_to_the_root


def pytest_xdist_auto_num_workers(config):
    """For ``-n auto``: half as many again as cores, for many tests wait for processes to end."""
    cores = os.cpu_count() or 1
    return cores + cores // 2


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Modules are no garbage: to look through them is an eighth of the time of importing them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


RUNS = ("subprocess.", "run_training(", "run_ranks(", "Ranks(", "train_here(")


def pytest_collection_modifyitems(items):
    """Files with whole runs come first, for what is begun last shall be short; xdist keeps it."""
    items.sort(key=lambda item: not _has_runs(item.path))


@functools.cache
def _has_runs(path):
    return any(word in path.read_text() for word in RUNS)


@pytest.fixture
def small_disk(tmp_path):
    """A folder that takes no large file: its own file system with 2 MB.

    Only root may mount one. Others get a folder, and no file may grow beyond 2 MB.
    """
    folder = tmp_path / "small disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, before[1]))
        yield folder
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    yield folder
    with contextlib.suppress(OSError):
        os.sync()
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def other_disk(tmp_path, tmp_path_factory):
    """A folder on another file system than ``tmp_path``."""
    folder = tmp_path_factory.mktemp("other disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)
    elif os.path.isdir("/dev/shm") and os.stat("/dev/shm").st_dev != os.stat(tmp_path).st_dev:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
            yield Path(name)
    else:
        pytest.skip("there is one file system only, and no right to mount another")
