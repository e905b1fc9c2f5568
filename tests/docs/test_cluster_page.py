"""docs/cluster.md: commands that can run here are run, the rest composes."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from experiment_helpers import ROOT, composed

from multimodal.config import check, normalize_args

PAGE = (ROOT / "docs" / "cluster.md").read_text()


def commands(kind: str) -> list[str]:
    blocks = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.S)
    return [line for block in blocks for line in block.splitlines() if line]


(SCRIPT,) = re.findall(r"```sbatch\n(.*?)```", PAGE, re.S)
TRAINED = re.compile(r"(?:scripts/train\.py|multimodal train) (.*)")
TRAININGS = [c for c in [*commands("bash"), *commands("sh"), SCRIPT] if TRAINED.search(c)]


def run(command: str, folder: Path) -> None:
    """As typed in an activated environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        shlex.split(command), cwd=folder, timeout=900, check=False, text=True,
        env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"


@pytest.mark.parametrize("command", TRAININGS)
def test_every_training_composes_and_is_checked(command):
    words = shlex.split(TRAINED.findall(command)[-1])
    unknown = ("-m", "+launcher=", "hydra")  # `compose` knows no Hydra of a job
    own = [word.partition(",")[0] for word in normalize_args(words) if not word.startswith(unknown)]
    with composed(*own) as cfg:
        check(cfg)


def test_the_page_names_every_trainer_and_links_what_is_there():
    for config in (ROOT / "configs" / "trainer").glob("*.yaml"):
        assert f"`{config.stem}`" in PAGE
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)
    assert "docs/cluster.md" in (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("bash"))
def test_a_command_runs_as_it_stands(command, tmp_path):
    for name in ("scripts", "configs", "multimodal"):
        (tmp_path / name).symlink_to(ROOT / name)
    run(command, tmp_path)
    (folder,) = (tmp_path / "outputs" / "clip_scratch").iterdir()
    assert (folder / "metrics.csv").exists()
    assert list((folder / "checkpoints").iterdir())


@pytest.mark.slow
def test_two_machines_under_torchrun(tmp_path):
    """Both on this one, with a device each."""
    (command,) = [c for c in commands("sh") if c.startswith("torchrun")]
    for before, after in (
        ("HOST:29500", "localhost:29517"), ("--nproc-per-node=8", "--nproc-per-node=1"),
        ("trainer.devices=8", "trainer.devices=1"), ("outputs/clip", f"{tmp_path}/run"),
    ):  # fmt: skip
        assert before in command
        command = command.replace(before, after)
    program = str(Path(sys.executable).with_name("torchrun"))
    words = [program, *shlex.split(command)[1:], "debug=fast", "trainer.accelerator=cpu",
             "trainer.precision=32-true", "data.batch_size=118"]  # fmt: skip
    found = os.pathsep.join([str(Path(program).parent), os.environ["PATH"]])
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": found
    }  # fmt: skip
    outputs = [tmp_path / f"node{number}.txt" for number in (0, 1)]
    nodes = []
    for output in outputs:
        with output.open("w") as file:
            nodes.append(
                subprocess.Popen(
                    words, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
                )
            )
    try:
        codes = [node.wait(900) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert codes == [0, 0], "\n".join(output.read_text()[-2000:] for output in outputs)
    assert (tmp_path / "run" / "metrics.csv").exists()
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
