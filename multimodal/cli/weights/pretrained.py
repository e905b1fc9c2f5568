"""The catalogue of pretrained towers: python scripts/pretrained.py list | fetch NAME ..."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from multimodal.core import pretrained_files
from multimodal.core.process.exits import errors_end_the_program


def main(words: Sequence[str] | None = None) -> None:
    """Lists the catalogue, or fetches entries of it.

    Raises:
        UserError: if an entry is not there, or cannot be had.
    """
    parser = argparse.ArgumentParser(
        prog="multimodal pretrained",
        description="Weights of pretrained towers, kept for all runs in "
        f"{pretrained_files.folder()} (set {pretrained_files.VARIABLE} to move it).",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what there is, from where, under which licence")
    fetching = commands.add_parser("fetch", help="download, verify and keep")
    fetching.add_argument("names", nargs="+", metavar="NAME")
    given = parser.parse_args(words)
    if given.command == "list":
        show()
        return
    from multimodal.config.composing.catalogue import entry  # late: --help needs neither
    from multimodal.inference.pretrained.fetching import fetch

    for one in [entry(name) for name in given.names]:  # a wrong name before the first download
        print(f"{one.name}: {fetch(one)}")


def show() -> None:
    """Prints a table of all entries."""
    from rich.console import Console
    from rich.table import Table

    from multimodal.config.composing.catalogue import entries
    from multimodal.inference.pretrained.fetching import is_whole

    table = Table("name", "what", "tower", "from", "MB", "licence", "here")
    for one in entries():
        towers = ", ".join(f"{modality}: {tower}" for modality, tower in one.use.towers.items())
        size = "?" if one.size is None else f"{one.size / 1e6:.0f}"
        here = "yes" if is_whole(one, pretrained_files.folder() / one.name) else ""
        seen = "" if one.verified else "not fetched by us"
        table.add_row(one.name, one.purpose, towers, one.source, size, one.licence, here or seen)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def command() -> None:
    """`multimodal pretrained` and `python scripts/pretrained.py`."""
    with errors_end_the_program():
        main()
