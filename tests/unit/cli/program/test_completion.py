"""What the Tab key finds: commands, groups, options, keys, files."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest

from multimodal.cli.program.completion import candidates


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "photos.csv").touch()
    (tmp_path / ".hidden").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("multimodal se", ["search ", "serve "]),
        ("multimodal train lo", ["logger.", "logger=", "loss.", "loss="]),
        ("multimodal train loss=si", ["loss=siglip"]),
        ("multimodal train +ex", ["+experiment="]),
        (
            "multimodal train +experiment=sig",
            [
                "+experiment=siglip",
                "+experiment=siglip2",
                "+experiment=siglip_vit_b16",
            ],
        ),
        ("multimodal train debug=", ["debug=fast", "debug=overfit", "debug=profile"]),
        ("multimodal train +experiment=clip_scratch debug=fast optimizer.l", ["optimizer.lr="]),
        (
            "multimodal train +experiment=clip_scratch encoder@model.towers.image.encoder=vit_b3",
            ["encoder@model.towers.image.encoder=vit_b32"],
        ),
        ("multimodal search checkpoint=", ["checkpoint=outputs/", "checkpoint=photos.csv"]),
        ("multimodal search checkpoint=out", ["checkpoint=outputs/"]),
        ("multimodal search appr", ["approximate="]),
        ("multimodal shards ", ["index ", "outputs/", "photos.csv", "verify "]),
        ("multimodal shards photos.csv --te", ["--texts "]),
        ("multimodal shards index --na", ["--name "]),
        ("multimodal completion z", ["zsh "]),
        ("multimodal nothing x", []),
        ("multimodal search query='a red", []),
        ("multimodal train +experiment=nothing opt", ["optimizer="]),
    ],
)
def test_a_line_is_completed(here, line, found):
    assert set(found) <= set(candidates(line))
    if line[-1] != "=":
        assert candidates(line) == found


def test_the_rest_is_refused_with_how_to(here):
    for words in ([], ["tcsh"]):
        done = subprocess.run(
            [sys.executable, "-m", "multimodal.cli", "completion", *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert 'eval "$(multimodal completion bash)"' in done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_values_behind_an_equals_sign(here, tmp_path):
    """A real bash on a terminal, and the Tab key."""
    door = tmp_path / "bin" / "multimodal"
    door.parent.mkdir()
    door.write_text(f'#!/bin/sh\nexec {sys.executable} -m multimodal.cli "$@"\n')
    door.chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{door.parent}:{os.environ['PATH']}", "PS1": "READY", "TERM": "dumb",
    }  # fmt: skip
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
    try:
        _until(terminal, "READY")
        os.write(terminal, b'eval "$(multimodal completion bash)"; echo DO"NE"\n')
        _until(terminal, "DONE")
        os.write(terminal, b"echo multimodal\n")  # the prompt is back
        _until(terminal, "READY")
        os.write(terminal, b"multimodal train +experiment=siglip_\t")
        _until(terminal, "+experiment=siglip_vit_b16")
        os.write(terminal, b" loss=hi\t")
        _until(terminal, " loss=hinge")
        os.write(terminal, b"\x15multimodal train encoder@model.towers.image.encoder=vit_b3\t")
        _until(terminal, "encoder=vit_b32")
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def _until(terminal: int, expected: str) -> None:
    """Reads the screen until it shows ``expected``."""
    shown, end = "", time.monotonic() + 120
    while expected not in shown.replace("\r\n", ""):
        ready, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
        assert ready, f"no {expected!r} in {shown!r}"
        shown += os.read(terminal, 4096).decode()
