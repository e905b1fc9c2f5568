"""Pages whose commands are run: the files that they show, what the commands print.

python tests/helpers/tutorials.py PAGE ...      runs the pages and writes down what is printed

A block of YAML or Python whose first lines name a file (``# configs/experiment/mine.yaml``) is that
file. A block of text is what the commands of the block before it print; the comment above it says
which lines: ``<!-- printed with: REGEX -->`` those that match, ``<!-- printed from: REGEX -->``
from the first that matches on.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"(?:^<!-- printed (?P<how>with|from): (?P<regex>[^\n]*) -->\n)?"
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.S | re.M,
)
_FILE = re.compile(r"^# ([\w./-]+\.(?:yaml|py))$", re.M)


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        kind: ``bash``, ``file`` or ``printed``; another language is shown only.
        text: what stands in it.
        name: of a file.
        how: ``with`` or ``from``, of what is printed.
        regex: for that.
        span: of ``text`` in the page.
    """

    kind: str
    text: str
    name: str
    how: str
    regex: str
    span: tuple[int, int]

    @property
    def commands(self) -> list[str]:
        """The lines of a block of commands."""
        return [line for line in self.text.splitlines() if line.strip()]

    def chosen(self, output: str) -> str:
        """The lines of an output that stand in this block."""
        lines = [line.rstrip() for line in output.splitlines()]
        matching = [n for n, line in enumerate(lines) if re.search(self.regex, line)]
        if not matching:
            raise ValueError(f"nothing that was printed matches {self.regex!r}:\n{output}")
        if self.how == "with":
            return "".join(f"{lines[n]}\n" for n in matching)
        return "\n".join(lines[matching[0] :]).rstrip() + "\n"


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    found = []
    for match in _BLOCK.finditer(page.read_text()):
        text, language = match["text"], match["language"]
        file = _FILE.search("\n".join(text.splitlines()[:2]))
        kind = "file" if file and language in ("yaml", "python") else language
        if language == "text" and match["how"]:
            kind = "printed"
        name = file[1] if file and kind == "file" else ""
        how, regex = match["how"] or "", match["regex"] or ""
        found.append(Block(kind, text, name, how, regex, match.span("text")))
    return found


def commands_of(page: Path) -> list[str]:
    """All commands of a page."""
    return [line for block in blocks_of(page) if block.kind == "bash" for line in block.commands]


def write_files(page: Path, folder: Path) -> None:
    """Leaves the files that a page shows in ``folder``."""
    for block in blocks_of(page):
        if block.kind == "file":
            file = folder / block.name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)


def run(command: str, folder: Path) -> str:
    """What a command prints on standard output; it is typed in an activated environment.

    Raises:
        AssertionError: if it fails.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    words = shlex.split(command)
    if words[0] == "multimodal":  # of this checkout
        words[:1] = [sys.executable, "-m", "multimodal.cli"]
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout.replace(f"{folder}/", "")


def results(page: Path, folder: Path) -> Iterator[tuple[Block, str]]:
    """Runs a page: each block of what is printed, and what is printed now."""
    write_files(page, folder)
    output = ""
    for block in blocks_of(page):
        if block.kind == "bash":
            output = "".join(run(command, folder) for command in block.commands)
        elif block.kind == "printed":
            yield block, block.chosen(output)


def words_of(text: str) -> list[list[str]]:
    """The words of each line, without its numbers: the same on every machine."""
    lines = (re.findall(r"[^\W\d_]{2,}", line) for line in text.splitlines())
    return [words for words in lines if words]


def record(page: Path) -> None:
    """Runs a page and writes down what is printed."""
    folder = Path(tempfile.mkdtemp())
    try:
        text = page.read_text()
        for block, printed in reversed(list(results(page, folder))):
            start, end = block.span
            text = text[:start] + printed + text[end:]
        page.write_text(text)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    for each in sys.argv[1:]:
        record(Path(each).resolve())
