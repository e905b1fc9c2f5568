"""The documentation as a site: it builds without a network; links, menu and names are whole."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown.extensions.toc import slugify

import multimodal
from multimodal.cli.program.commands import COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OF_ROOT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
MADE = {"changelog.md", "contributing.md", "reference/commands.md"}  # by docs/site/hooks.py
MADE |= {str(p.relative_to(DOCS).with_suffix(".md")) for p in DOCS.rglob("*.ipynb")}
ROOMS = [p.parent.name for p in sorted((ROOT / "multimodal").glob("*/__init__.py"))]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {slugify(re.sub(r"[`*]", "", heading), "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        if DOCS in page.parents and str(file.relative_to(DOCS)) in MADE:
            continue
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


def menu(entries: list[Any]) -> list[str]:
    """The pages that the menu names."""
    pages: list[str] = []
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            pages += menu(value) if isinstance(value, list) else [value]
    return pages


@pytest.mark.parametrize("page", [*PAGES, *OF_ROOT], ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_to_pages_and_headings(page):
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `name` of it\n\n[a](#a-name-of-it) [b](#gone) [c](gone.md) [d](page.md#no)\n"
    )
    assert broken_links(page) == ["#gone", "gone.md", "page.md#no"]


def test_every_page_is_in_the_menu_once():
    named = menu(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(named) == sorted({str(page.relative_to(DOCS)) for page in PAGES} | MADE)


def test_every_tutorial_is_in_the_list_of_tutorials():
    listed = set(re.findall(r"\]\(([\w-]+)\.md\)", (DOCS / "tutorials" / "index.md").read_text()))
    pages = (p for p in (DOCS / "tutorials").iterdir() if p.suffix in (".md", ".ipynb"))
    assert listed == {page.stem for page in pages} - {"index"}


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "cli"])
def test_every_package_has_a_page_in_the_reference(room):
    assert f"::: multimodal.{room}\n" in (DOCS / "reference" / f"{room}.md").read_text()


def test_the_citation_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == multimodal.__version__
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text()
    assert {"cff-version", "title", "message", "authors"} <= citation.keys()


def test_the_changelog_has_every_version_that_is_kept_readable():
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    kept = [p.name.removeprefix("release_") for p in (ROOT / "tests/vectors").glob("release_*")]
    assert versions[0] == "Unreleased"
    assert {".".join(version.split(".")[:2]) for version in versions[1:]} >= {
        version.replace("_", ".") for version in kept
    }


@pytest.mark.parametrize("form", ["bug", "feature", "data_layout"])
def test_an_issue_form_asks_for_what_is_needed(form):
    """As GitHub reads it: https://docs.github.com/communities, syntax for issue forms."""
    content = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE" / f"{form}.yml").read_text())
    assert {"name", "description"} <= content.keys()
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"].get("label") for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built by a process that reaches no network."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*_):\n    raise OSError('no network here')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
    )
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", folder / "site"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "site"


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link)[^>]+(?:src|href)=\"?(https?://[^\s\">]+)", page.read_text()
        )
        assert loaded == [], page
    assert (site / "search" / "search_index.json").stat().st_size > 100_000
    assert not list(site.rglob("*.py"))


@pytest.mark.slow
def test_the_reference_has_every_public_name_and_command(site):
    for room in ROOMS:
        if room == "cli":
            continue
        page = (site / "reference" / f"{room}.html").read_text()
        ids = set(re.findall(r'id="?multimodal\.\w+\.(\w+)[">\s]', page))
        assert set(importlib.import_module(f"multimodal.{room}").__all__) <= ids
    commands = (site / "reference" / "commands.html").read_text()
    assert set(re.findall(r'<h2 id="?(\w+)', commands)) == set(COMMANDS)
