"""The command `multimodal VERB`, and the doors in `scripts/`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from multimodal.cli.__main__ import VERBS

ROOT = Path(__file__).parents[3]
SCRIPTS = [
    "adapters.py", "embed.py", "evaluate.py", "import_weights.py", "join_checkpoint.py",
    "make_shards.py", "search.py", "serve.py", "summarize.py", "train.py",
]  # fmt: skip


def multimodal(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "multimodal.cli", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_verb_has_a_module_and_a_script():
    assert sorted(f"{verb}.py" for verb in VERBS) == SCRIPTS
    for verb in VERBS:
        module = ast.parse((ROOT / "multimodal" / "cli" / f"{verb}.py").read_text())
        assert "command" in {getattr(node, "name", "") for node in module.body} or verb == "train"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_a_door_and_no_more(script):
    tree = ast.parse((ROOT / "scripts" / script).read_text())
    kinds = {type(node).__name__ for node in tree.body}
    assert kinds <= {"Expr", "Import", "ImportFrom", "If"}, "no code of its own"


def test_without_words_the_verbs_are_listed():
    done = multimodal()
    assert done.returncode == 0
    for verb in VERBS:
        assert f"  {verb} " in done.stdout


def test_a_verb_takes_its_own_words():
    done = multimodal("evaluate", "checkpont=x")
    assert done.returncode == 2
    assert "did you mean 'checkpoint'?" in done.stderr
    done = multimodal("join_checkpoint")
    assert done.returncode == 2
    assert "the following arguments are required: folder, output" in done.stderr


def test_other_words_are_those_of_a_training():
    """As `python -m multimodal.cli +experiment=NAME` had it before there were verbs."""
    for words in (["trainer.max_step=3"], ["train", "trainer.max_step=3"]):
        done = multimodal(*words)
        assert done.returncode == 2
        assert "did you mean 'trainer.max_steps'?" in done.stderr
