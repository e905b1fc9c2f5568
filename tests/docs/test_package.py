"""The wheel: what is in it, and that it works away from the checkout."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pretrained_helpers import case, foreign_state
from safetensors.torch import save_file

from multimodal.cli.program.commands import COMMANDS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", folder, wheel], check=True, capture_output=True)
    return folder


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(installed / "bin" / "multimodal-train"), *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_configs_samples_and_licence_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = (path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml"))
    assert {f"multimodal/{path}" for path in files} <= names
    samples = ROOT / "multimodal" / "data" / "samples"
    assert {str(p.relative_to(ROOT)) for p in samples.rglob("*") if p.is_file()} <= names
    assert {"multimodal/py.typed", "multimodal/evaluation/report/page.html"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"multimodal"}


def test_the_installed_command_composes_its_own_configs_and_the_users(installed, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: clip_sample\nname: mine\n"
    )
    done = run(installed, tmp_path, "--config-dir", "own", "+experiment=mine", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "name: mine\n" in done.stdout
    assert "_target_: multimodal.models.EmbeddingModel\n" in done.stdout
    done = run(installed, tmp_path, "--config-dir", "own", "--info", "searchpath")
    assert str(installed / "multimodal" / "configs") in done.stdout + done.stderr
    assert str(ROOT / "configs") not in done.stdout + done.stderr


def test_the_installed_command_answers_a_misspelt_key(installed, tmp_path):
    done = run(installed, tmp_path, "trainer.max_step=3")
    assert done.returncode == 2
    assert "did you mean 'trainer.max_steps'?" in done.stderr


def test_an_editable_installation_reads_the_configs_of_the_checkout(tmp_path):
    """A copy of the configs in the environment would go stale at the first edit."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    options = ["--no-build-isolation", "--target", str(tmp_path / "site"), "-e", str(ROOT)]
    subprocess.run([*command, *options], check=True, capture_output=True)
    code = (
        f"import site; site.addsitedir({str(tmp_path / 'site')!r})\n"
        "from multimodal.config import config_dir; print(config_dir())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(ROOT / "configs")


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new virtual environment with the wheel; its dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # Only what lies in it: the checkout, of which a .pth file in it tells, is not on the path.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    command = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"]
    options = ["--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel]
    subprocess.run([*command, *options], check=True, capture_output=True)
    code = "import multimodal; print(multimodal.__file__)"
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    used = subprocess.run(
        [folder / "bin" / "python", "-c", code], cwd=folder, env=kept, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert used.stdout.startswith(str(site)), used.stdout
    return folder


def installed_command(environment: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(environment / "bin" / "multimodal"), *words],
        cwd=folder, env={**kept, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_every_command_works_from_an_empty_folder(environment, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(12):
        pixels = np.full((32, 32, 3), 20 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        (tmp_path / "photos" / f"{number}.txt").write_text(f"grey number {number}")
    described, _ = case("siglip_a")
    state = foreign_state(described["shapes"], described["seed"], described["std"])
    (tmp_path / "foreign").mkdir()
    save_file(state, tmp_path / "foreign" / "open_clip_model.safetensors")
    content = json.dumps({"model_cfg": described["cfg"]})
    (tmp_path / "foreign" / "open_clip_config.json").write_text(content)

    run = "outputs/mine"
    steps = ("trainer.max_steps=2", "trainer.val_check_interval=1", "data.num_workers=0")
    for words in (
        ("shards", "photos", "shards/photos", "--require", "png", "txt", "--split", "train=0.6",
         "val=0.4"),
        ("shards", "verify", "shards/photos"),
        ("new", "mine", "--data", "shards/photos", "--scratch"),
        ("train", "--config-dir", "configs", "+experiment=mine", f"hydra.run.dir={run}", *steps),
        ("evaluate", f"checkpoint={run}", "hydra.run.dir=outputs/evaluated"),
        ("embed", f"checkpoint={run}", "input=photos", "output=photos.parquet"),
        ("search", f"checkpoint={run}", "index=photos.parquet", "query=grey, isn't it?"),
        ("summarize", run),
        ("import", "input=foreign", "output=foreign.ckpt"),
        ("completion", "bash"),
    ):  # fmt: skip
        done = installed_command(environment, tmp_path, *words)
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    assert (tmp_path / "outputs" / "evaluated" / "report.html").exists()
    # These two need what a small run does not have, and say so.
    done = installed_command(environment, tmp_path, "adapters", f"checkpoint={run}", "output=out")
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    done = installed_command(environment, tmp_path, "join", run, "one.ckpt")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_the_search_page_is_served_from_an_empty_folder(environment, tmp_path):
    steps = ("debug=fast", "~evaluation", "hydra.run.dir=run", "data.num_workers=0")
    done = installed_command(environment, tmp_path, "train", "+experiment=clip_scratch", *steps)
    assert done.returncode == 0, done.stderr[-3000:]
    words = ("checkpoint=run", "input=samples://furniture.json", "split=test", "output=t.parquet")
    done = installed_command(environment, tmp_path, "embed", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    command = [
        str(environment / "bin" / "multimodal"),
        "serve",
        "checkpoint=run",
        "index=t.parquet",
    ]
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = subprocess.Popen(
        [*command, "port=0"], cwd=tmp_path, env=kept, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        (address,) = re.findall(r"http://\S+", line)
        with urllib.request.urlopen(address, timeout=120) as page:
            assert b"<html" in page.read()
    finally:
        process.terminate()
        process.wait()


def test_every_command_has_help_in_the_wheel(environment, tmp_path):
    for name in COMMANDS:
        done = installed_command(environment, tmp_path, name, "--help")
        assert done.returncode == 0, done.stderr
        assert f"multimodal {name}" in done.stdout
    assert list(tmp_path.iterdir()) == []
