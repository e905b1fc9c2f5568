"""The wheel: what is in it, and that it works away from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
