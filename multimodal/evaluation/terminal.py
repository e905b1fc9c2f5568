"""Tables in a terminal, never cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

WIDEST = 1000  # columns


def print_table(table: Table) -> None:
    """Prints a table on standard output, at its own width where the terminal is narrower.

    A figure that is cut off says nothing; a long line can be scrolled or piped. Without a terminal
    (a log, a pipe) rich would take 80 columns.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    wide = console.options.update(max_width=WIDEST)
    needed = Measurement.get(console, wide, table).maximum
    Console(width=max(console.width, needed)).print(table)
