"""The README is true: its commands are run as they stand."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line]
BY_CI = ["make test"]  # what runs this test
FRESH = ["make train"]
LIGHT = [command for command in COMMANDS if "--cfg" in command]
HEAVY = [c for c in COMMANDS if c not in (*BY_CI, *FRESH, *LIGHT)]


def run(command, folder, timeout):
    """As typed in an activated environment, in ``folder``; returns what it printed."""
    environment = dict(os.environ, PYTHONPATH=str(folder))
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        shlex.split(command), cwd=folder, env=environment, timeout=timeout, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout


def clone(folder):
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    return folder


def test_there_is_something_to_run():
    assert COMMANDS.count("make train") == COMMANDS.count("make test") == 1
    assert len(HEAVY) >= 8


@pytest.mark.parametrize("command", LIGHT)
def test_a_light_command_works(command):
    status, output = run(command, ROOT, timeout=120)
    assert status == 0, output
    assert "image_text" in output


def test_the_shown_error_is_the_real_one():
    (shown,) = re.findall(r"```console\n\$ (.*?)```", README, re.S)
    command, _, expected = shown.partition("\n")
    status, output = run(command, ROOT, timeout=120)
    assert status == 2
    assert output.strip() == expected.strip()


def test_every_linked_file_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


@pytest.mark.slow
def test_every_other_command_works_in_turn_in_a_fresh_clone(tmp_path):
    folder = clone(tmp_path / "clone")
    for command in HEAVY:
        status, output = run(command, folder, timeout=1800)
        assert status == 0, f"{command}\n{output[-3000:]}"
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    status, output = run(f"python -c {shlex.quote(code)}", folder, timeout=300)
    assert status == 0, output[-3000:]


@pytest.mark.slow
def test_make_train_ends_with_a_report_in_a_fresh_clone(tmp_path):
    folder = clone(tmp_path / "clone")
    status, output = run("make train", folder, timeout=3600)
    assert status == 0, output[-3000:]
    (path,) = re.findall(r"^report: (.*report\.html)$", output, re.M)[-1:]
    assert (folder / path).stat().st_size > 100_000
    for row in ("emoji_unseen", "speech_unseen", "furniture", "exercise", "motion", "thermal"):
        assert row in output
