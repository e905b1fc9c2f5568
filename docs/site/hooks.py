"""Pages of the site that are made: of the repository's own files, notebooks, the programs' help.

MkDocs calls `on_files` (https://www.mkdocs.org/dev-guide/plugins/#on_files).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from multimodal.cli.program.commands import COMMANDS

FROM_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    docs = Path(config.docs_dir)
    for name, source in FROM_ROOT.items():
        text = (docs.parent / source).read_text()
        files.append(File.generated(config, name, content=from_root(text, docs)))
    for notebook in sorted(docs.rglob("*.ipynb")):
        name = notebook.relative_to(docs)
        page = page_of(json.loads(notebook.read_text()), name.name)
        files.append(File.generated(config, str(name.with_suffix(".md")), content=page))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def commands() -> str:
    """Every command with its purpose and what its `--help` prints."""
    with ThreadPoolExecutor(4) as pool:
        helps = list(pool.map(_help, COMMANDS))
    rows = "\n".join(f"| [`{name}`](#{name}) | {c.purpose} |" for name, c in COMMANDS.items())
    parts = [
        "# Commands",
        "`multimodal COMMAND`, from the installed package; what each prints for `--help`.",
        f"| command | |\n|---|---|\n{rows}",
    ]
    for name, text in zip(COMMANDS, helps, strict=True):
        parts.append(f"## {name}\n\n```text\n{text.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _help(name: str) -> str:
    words = [sys.executable, "-m", "multimodal.cli", name, "--help"]
    environment = {**os.environ, "COLUMNS": "96"}
    shown = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return shown.stdout.replace(str(Path.home()), "~")


def from_root(text: str, docs: Path) -> str:
    """``text`` with its links as seen from the pages' folder; other files are named only."""

    def moved(link: re.Match[str]) -> str:
        shown, target = link.groups()
        path = docs.parent / target.partition("#")[0]
        if path.is_relative_to(docs) and path.exists():
            return f"[{shown}]({target.removeprefix(f'{docs.name}/')})"
        return f"{shown} (`{target}`)"

    return LINK.sub(moved, text)


def page_of(notebook: dict[str, Any], name: str) -> str:
    """A notebook's cells and their outputs as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        language = "bash" if text.startswith("!") else "python"
        parts.append(f"```{language}\n{text.removeprefix('!')}\n```")
        parts += [shown for output in cell["outputs"] if (shown := _output(output))]
    note = f"*This page is the notebook [{name}]({name}): download it and run it.*"
    return "\n\n".join([parts[0], note, *parts[1:]]) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    if not text.strip():
        return ""
    return f'<div class="nb-output" markdown>\n\n```text\n{text.rstrip()}\n```\n\n</div>'
