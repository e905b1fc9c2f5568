"""The levels of the package and the doors of its dependencies, as pyproject.toml states them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_keep_to_the_contracts():
    # In a process of its own: the linter switches off the loggers of the one that it runs in.
    code = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_packages_do_nothing_when_imported():
    """No `__init__` runs anything: it is empty, or lifts names out of its modules."""
    for path in (ROOT / "multimodal").rglob("__init__.py"):
        code = [line for line in path.read_text().splitlines() if line and line[0].isalpha()]
        assert all(line.startswith(("from multimodal.", "import ")) for line in code), path


def test_types_are_there_for_those_who_use_the_package():
    assert (ROOT / "multimodal" / "py.typed").exists()


def test_configuration_needs_no_torch():
    code = "import multimodal.config, multimodal.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
