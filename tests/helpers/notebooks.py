"""Notebooks without Jupyter: their cells are run one after the other, in one namespace.

python tests/helpers/notebooks.py NOTEBOOK ...      runs them and keeps what each cell gives
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tutorials import run


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells that are run."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs_of(source: str, names: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What a cell gives, as a notebook holds it: what it prints, and its last expression.

    A cell that begins with ``!`` is a command, whose output is not kept.
    """
    if source.startswith("!"):
        run(source.removeprefix("!"), folder)
        return []
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    found: list[dict[str, Any]] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        found.append({"name": "stdout", "output_type": "stream", "text": text})
    if value is not None:
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        found.append(
            {"data": data, "execution_count": None, "metadata": {}, "output_type": "execute_result"}
        )
    return found


def run_cells(notebook: dict[str, Any], folder: Path) -> list[list[dict[str, Any]]]:
    """The outputs of every cell of code, run in ``folder``."""
    names: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        return [outputs_of("".join(c["source"]), names, folder) for c in code_cells(notebook)]
    finally:
        os.chdir(before)


def text_of(outputs: list[dict[str, Any]]) -> str:
    """Outputs as one text."""
    return "".join(
        "".join(output.get("text", output.get("data", {}).get("text/plain", [])))
        for output in outputs
    )


def record(path: Path) -> None:
    """Runs a notebook and keeps what its cells give."""
    notebook = json.loads(path.read_text())
    folder = Path(tempfile.mkdtemp())
    try:
        for cell, outputs in zip(code_cells(notebook), run_cells(notebook, folder), strict=True):
            cell["outputs"] = outputs
    finally:
        shutil.rmtree(folder)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        record(Path(each).resolve())
