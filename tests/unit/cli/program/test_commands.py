"""The program `multimodal COMMAND`, and the doors in `scripts/`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from marks import some

from multimodal.cli.program.commands import COMMANDS, find

ROOT = Path(__file__).parents[4]
SCRIPTS = [
    "adapters.py", "embed.py", "evaluate.py", "export.py", "import_weights.py",
    "join_checkpoint.py", "make_shards.py", "pretrained.py", "search.py", "serve.py",
    "summarize.py", "train.py",
]  # fmt: skip

# Runs the program and says what it imported that takes long.
PROGRAM = """
import sys
from multimodal.cli.__main__ import main
try:
    main()
finally:
    heavy = {"torch", "pytorch_lightning", "transformers", "pyarrow", "matplotlib", "sklearn"}
    print("heavy", sorted(heavy & sys.modules.keys()), file=sys.stderr)
"""


def multimodal(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "multimodal.cli", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", some(COMMANDS, every=5))
def test_the_help_of_a_command_needs_nothing_that_takes_long(name):
    """`--help` answers within a second where no torch is imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"multimodal {name} " in done.stdout
    assert done.stderr == "heavy []\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_a_door_and_no_more(script):
    tree = ast.parse((ROOT / "scripts" / script).read_text())
    kinds = {type(node).__name__ for node in tree.body}
    assert kinds <= {"Expr", "Import", "ImportFrom", "If"}, "no code of its own"


def test_former_names_stay():
    for script in SCRIPTS:
        assert find(Path(script).stem) is not None


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]])
def test_the_commands_are_listed(words):
    done = multimodal(*words)
    assert done.returncode == 0
    for name, command in COMMANDS.items():
        assert f"  {name:<12}{command.purpose}\n" in done.stdout


def test_a_command_takes_its_own_words():
    done = multimodal("evaluate", "checkpont=x")
    assert done.returncode == 2
    assert "did you mean 'checkpoint'?" in done.stderr
    done = multimodal("join")
    assert done.returncode == 2
    assert "the following arguments are required: folder, output" in done.stderr


def test_a_misspelt_command_is_answered_with_the_right_one():
    done = multimodal("serch", "query=dog")
    assert done.returncode == 2
    assert "did you mean `multimodal search query=dog`?" in done.stderr
    assert "commands: train, new, " in multimodal("xyz").stderr


def test_overrides_without_a_command_train():
    """As `python -m multimodal.cli +experiment=NAME` had it before there were commands."""
    for words in (["trainer.max_step=3"], ["train", "trainer.max_step=3"]):
        done = multimodal(*words)
        assert done.returncode == 2
        assert "did you mean 'trainer.max_steps'?" in done.stderr
