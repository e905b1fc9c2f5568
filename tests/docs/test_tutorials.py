"""docs/tutorials/: every command and file of a page is right, and the pages do what they say."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path

import notebooks
import pytest
import tutorials
from experiment_helpers import ROOT, chdir, composed
from hydra import compose, initialize_config_dir

from multimodal.cli import new
from multimodal.cli.make_shards import main as make_shards
from multimodal.cli.packing.options import pack_parser
from multimodal.cli.program.commands import COMMANDS
from multimodal.config import check, config_dir, normalize_args

FOLDER = ROOT / "docs" / "tutorials"
PAGES = [p for p in sorted(FOLDER.glob("*.md")) if p.stem not in ("index", "photos")]
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def check_training(words: list[str], folder: Path) -> None:
    """Composes and checks it, with the folder of configurations that it names."""
    if "--config-dir" in words:
        place = words.index("--config-dir")
        own = words[place + 1]
        words = [*words[:place], *words[place + 2 :], f"hydra.searchpath=[file://{folder}/{own}]"]
    unknown = ("-m", "hydra.run", "hydra.sweep")  # `compose` knows no Hydra of a job
    kept = [word for word in normalize_args(words) if not word.startswith(unknown)]
    firsts = [re.sub(r"^(seed=\d+),.*", r"\1", word) for word in kept]
    with composed(*firsts) as cfg:
        check(cfg)


def check_command(command: str, folder: Path, files: set[str]) -> None:
    program, *words = shlex.split(command)
    if program == "python":
        assert words[0] in files
    elif program != "multimodal":
        raise AssertionError(f"no program of these pages: {command}")
    elif words[0] == "train":
        check_training(words[1:], folder)
    elif words[0] == "shards":
        pack_parser(argparse.ArgumentParser()).parse_args(words[1:])
    elif (config := COMMANDS[words[0]].config) is not None:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            compose(config, [w for w in normalize_args(words[1:]) if not w.startswith("hydra.")])


@by_name
def test_every_command_and_file_is_right(page, tmp_path):
    tutorials.write_files(page, tmp_path)
    blocks = tutorials.blocks_of(page)
    files = {block.name for block in blocks if block.kind == "file"}
    for block in blocks:
        if block.name.endswith(".py"):
            compile(block.text, block.name, "exec")
    if page.stem == "sensors":  # its last experiment builds on one that a command writes
        draft_small(page, tmp_path)
    jobs = [job for block in blocks if block.kind == "sbatch" for job in block.commands]
    shown = [line for block in blocks if block.kind == "sh" for line in block.commands]
    ran = tutorials.commands_of(page)
    assert ran
    for command in [*ran, *shown, *(j.removeprefix("srun ") for j in jobs if "multimodal" in j)]:
        check_command(command, tmp_path, files)


def draft_small(page: Path, folder: Path) -> None:
    """Data as the page makes them, but fewer, packed and looked at."""
    (code,) = (b.text for b in tutorials.blocks_of(page) if b.name == "make_room.py")
    assert '("train", 10)' in code
    with chdir(folder):
        exec(compile(code.replace('("train", 10)', '("train", 1)'), "make_room", "exec"), {})
        for words in map(shlex.split, tutorials.commands_of(page)):
            if words[:2] == ["multimodal", "shards"]:
                assert make_shards(words[2:]) == 0
            elif words[:2] == ["multimodal", "new"]:
                new.main(words[2:])


@by_name
def test_what_is_printed_was_recorded(page):
    printed = [block for block in tutorials.blocks_of(page) if block.kind == "printed"]
    assert printed
    for block in printed:
        assert block.text == block.chosen(block.text)


@pytest.mark.slow
@by_name
def test_a_page_does_what_it_says(page, tmp_path):
    for block, printed in tutorials.results(page, tmp_path):
        lines = (tutorials.words_of(text) for text in (printed, block.text))
        now, before = ([words[0] for words in each] for each in lines)  # ranks may differ
        assert now == before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_one(path):
    """By https://nbformat.readthedocs.io, format 4."""
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4
    assert {"metadata", "nbformat_minor"} <= notebook.keys()
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert {"metadata", "source"} <= cell.keys()
    cells = notebooks.code_cells(notebook)
    assert any(cell["outputs"] for cell in cells)
    for cell in cells:
        source = "".join(cell["source"])
        assert {"execution_count", "outputs"} <= cell.keys()
        if source.startswith("!"):
            check_training(shlex.split(source.removeprefix("!"))[2:], ROOT)
        else:
            compile(source, "cell", "exec")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_gives_what_it_shows(path, tmp_path):
    notebook = json.loads(path.read_text())
    shown = [cell["outputs"] for cell in notebooks.code_cells(notebook)]
    for before, now in zip(shown, notebooks.run_cells(notebook, tmp_path), strict=True):
        texts = [notebooks.text_of(each) for each in (before, now)]
        lines = [tutorials.words_of(text) for text in texts]
        assert [words[0] for words in lines[0]] == [words[0] for words in lines[1]]


def test_the_words_of_a_page_are_compared_without_its_numbers():
    old = "image → text   12.5 (3.0-20.1)  ≈   5.0\n"
    new = "image → text   11.0 (2.0-19.1)      5.0\n"
    assert tutorials.words_of(old) == tutorials.words_of(new) == [["image", "text"]]
    block = tutorials.Block("printed", "", "", "with", "→", (0, 0))
    assert block.chosen(f"a\n{old}b\n") == old.rstrip() + "\n"
    with pytest.raises(ValueError, match="nothing that was printed"):
        block.chosen("a\n")
