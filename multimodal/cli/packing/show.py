"""What `make_shards.py` prints: progress, a table of splits, what was left out and why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:  # torch comes after the arguments
    from multimodal.data.packing.index import ShardProblem
    from multimodal.data.packing.pack import Packed

CONSOLE = Console(stderr=True)
_SHOWN = 50  # problems of shards


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar while the context lasts; called with the count done, and the total."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not CONSOLE.is_terminal
    with Progress(*columns, console=CONSOLE, transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def say(line: str) -> None:
    """A line about what was found in the input."""
    CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)


def show_packed(packed: Packed) -> None:
    """Splits, quality, and last what was left out; the manifest's path on standard output."""
    report: dict[str, Any] = packed.report
    table = Table("split", "shards", "samples", "megabytes")
    samples = 0
    for split, counts in report["splits"].items():
        megabytes = f"{counts['bytes'] / 1e6:,.1f}"
        table.add_row(split, str(counts["shards"]), str(counts["samples"]), megabytes)
        samples += counts["samples"]
    CONSOLE.print(table)
    quality = report["quality"]
    texts = quality["texts"]
    say(
        f"{quality['near_duplicate_pictures']['pairs']} pairs of near-duplicate pictures, "
        f"{quality['exact_copies']} exact copies; {texts['count']} texts, {texts['repeated']} of "
        "them repeated; more in report.json"
    )
    if longest := texts["longest"]:
        say(f"the longest text has {longest[0]:,} characters, of the sample {longest[1]!r}")
    for key, count in report["json"].items():
        if count < samples:
            say(f"{samples - count} of {samples} samples have no {key!r} in their json")
    for reason, count in report["refused"].items():
        say(f"left out: {count} {reason} (each in refused.jsonl)")
        for example in report["examples"][reason]:
            say(f"  {example}")
    print(packed.manifest)


def show_problems(problems: Sequence[ShardProblem]) -> None:
    """A line for each problem of a shard."""
    for problem in problems[:_SHOWN]:
        where = f"{problem.shard}, key {problem.key!r}" if problem.key else problem.shard
        print(f"{where}: {problem.reason}: {problem.detail}", file=sys.stderr)
    if len(problems) > _SHOWN:
        print(f"and {len(problems) - _SHOWN} more", file=sys.stderr)
