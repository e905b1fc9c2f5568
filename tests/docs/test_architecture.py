"""The levels of the package and the doors of its dependencies, as pyproject.toml states them."""

import ast
import importlib
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from hydra.utils import get_object

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "multimodal").rglob("*.py"))
ROOMS = (
    "",
    "config",
    "core",
    "data",
    "models",
    "objectives",
    "inference",
    "evaluation",
    "training",
    "cli",
)


def test_imports_keep_to_the_contracts():
    # In a separate process: the linter switches off the loggers of the one that it runs in.
    code = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_packages_import_nothing_heavy():
    """A room names what it offers, and imports it when it is used."""
    rooms = sorted(path.parent for path in (ROOT / "multimodal").rglob("__init__.py"))
    names = [".".join(folder.relative_to(ROOT).parts) for folder in rooms]
    code = (
        f"import sys, importlib\nfor name in {names}: importlib.import_module(name)\n"
        "heavy = {'torch', 'numpy', 'hydra', 'omegaconf', 'pytorch_lightning', 'PIL'}\n"
        "ours = {n for n in sys.modules if n.split('.')[0] == 'multimodal'}\n"
        f"print(sorted(heavy & sys.modules.keys()), sorted(ours - {set(names)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (
        done.stdout.strip()
        == "[] ['multimodal.core.imports.former', 'multimodal.core.imports.lazy']"
    )


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_what_it_offers(room):
    """Each name of `__all__` is there, and of nothing else there is a promise."""
    package = importlib.import_module(f"multimodal.{room}".rstrip("."))
    for name in package.__all__:
        if name.startswith("__"):
            continue
        assert getattr(package, name).__module__.startswith("multimodal."), name
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'Unheard'"):
        package.Unheard  # noqa: B018


def test_what_is_imported_by_name_keeps_to_the_levels_too():
    """The contracts see no strings: config resolves what a room offers, cli its own commands."""
    package = ROOT / "multimodal"
    by_name = {
        str(path.relative_to(package))
        for path in SOURCES
        if re.search(r"\bimport_module\((?!\s*\")|__import__\(", path.read_text())
    }
    assert by_name == {
        "cli/__main__.py",
        "cli/program/completion.py",
        "config/targets/resolving.py",
        "core/extras.py",
        "core/imports/former.py",
        "core/imports/lazy.py",
        "core/process/lean_imports.py",
    }
    for path in (package / "config").rglob("*.py"):
        for name in re.findall(r"\"(?:partial )?(multimodal\.\w+\.\w+)\"", path.read_text()):
            assert get_object(name) is not None, (path, name)
    for path in SOURCES:
        level = path.relative_to(package).parts[0]
        for name in re.findall(r"import_module\(\s*f?\"multimodal\.(\w+)", path.read_text()):
            assert name == level, (path, name)


@pytest.mark.slow
def test_a_checkpoint_is_used_without_lightning():
    """Loading, embedding, searching and evaluating need no trainer."""
    modules = [
        "multimodal.inference.checkpoint.load",
        "multimodal.inference.load",
        "multimodal.inference.search.index",
        "multimodal.inference.search.builder",
        "multimodal.inference.adapters",
        "multimodal.inference.importing",
        "multimodal.evaluation.run",
    ]
    stored = ROOT / "tests" / "vectors" / "release_0_1" / "contrastive"
    code = (
        f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\n"
        f"import multimodal; multimodal.load('{stored}/checkpoints/step=00000004.ckpt')\n"
        "print(sorted({n.split('.')[0] for n in sys.modules if 'lightning' in n}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_no_folder_and_no_module_is_too_large():
    """A folder has at most 15 modules, a module at most 350 lines, and none is loose."""
    package = ROOT / "multimodal"
    assert [path.name for path in package.glob("*.py")] == ["__init__.py"]
    for folder in {path.parent for path in SOURCES}:
        assert len(list(folder.glob("*.py"))) <= 15, folder
    lines = {path: len(path.read_text().splitlines()) for path in SOURCES}
    assert [path for path, count in lines.items() if count > 350] == []
    modules = [count for path, count in lines.items() if path.name != "__init__.py"]
    assert 100 <= statistics.median(modules) <= 200


def name_of(decorator: ast.expr) -> str:
    return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)


# Of more than 12 fields: settings, and a table of results.
RECORDS = {"Train", "Modality", "Plan", "ZeroShot"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_constructors_are_short(path):
    """A function has at most 60 lines, and it or a constructor at most 12 parameters."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            own = {each.arg for each in given} - {"self", "cls"}
            if "triton.jit" in map(name_of, node.decorator_list):
                continue  # all that a kernel reads or writes is an argument
            assert len(own) <= 12, (node.name, sorted(own))
        elif isinstance(node, ast.ClassDef) and "dataclass" in map(name_of, node.decorator_list):
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
            assert len(fields) <= 12 or node.name in RECORDS, (node.name, len(fields))


def test_the_page_names_what_is_there():
    """Every path that docs/architecture.md names exists."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:multimodal|configs|tests|scripts|docs)/[\w./]*)`", page)
    short = re.findall(r"`((?:data|training|config|evaluation|inference)/[\w./]+\.py)`", page)
    assert len(named) > 30
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert [path for path in short if not (ROOT / "multimodal" / path).exists()] == []
    rooms = {path.name for path in (ROOT / "multimodal").iterdir() if path.is_dir()}
    drawn = set(re.findall(r"\b(\w+)/  ", page))
    assert (
        {"cli", "training", "evaluation", "inference", "config", "data"}
        <= drawn
        <= rooms | {path.name for path in (ROOT / "multimodal").rglob("*") if path.is_dir()}
    )


def test_every_test_and_module_that_a_page_names_is_there():
    named = re.compile(r"`((?:multimodal|tests|scripts|configs)/[\w./]*[\w/])`")
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        gone = [name for name in named.findall(page.read_text()) if not (ROOT / name).exists()]
        assert gone == [], page.name


def test_the_snippet_of_the_page_runs(tmp_path, monkeypatch):
    """With a checkpoint and a modality that are there."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    stored = ROOT / "tests/vectors/release_0_1/contrastive"
    code = code.replace("outputs/mine", str(stored))
    given = 'image=["chair.jpg"], text=["a red chair", "a dog"]'
    assert given in code
    names: dict = {"numpy": numpy}
    exec(code.replace(given, "sensor=[numpy.ones(12)] * 3"), names)
    assert names["vectors"].shape == (3, 8)


def test_types_are_there_for_those_who_use_the_package():
    assert (ROOT / "multimodal" / "py.typed").exists()


def test_configuration_needs_no_torch():
    code = "import multimodal.config.checking, multimodal.cli.main, sys; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
