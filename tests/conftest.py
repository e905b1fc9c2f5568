"""Fixtures of several files."""

import contextlib
import os
import subprocess

import pytest


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with 2 MB: a tmpfs, which only root may mount."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    with contextlib.suppress(OSError):
        os.sync()
    subprocess.run(["umount", "-l", str(folder)], check=True)
