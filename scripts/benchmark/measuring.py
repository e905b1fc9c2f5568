"""Shared by the benchmarks: sides that take turns, each in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

Step = Callable[[int], dict[str, float]]  # of a number: part -> seconds, of what it measured


def processor_time() -> float:
    """Seconds of user and system time of this process and its threads."""
    return time.process_time()


def peak_megabytes() -> float:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if os.uname().sysname == "Linux" else 1024**2)


def in_turns(
    sides: Mapping[str, Callable[..., Step]], rounds: int, warm_up: int = 1, **given: Any
) -> dict[str, dict[str, list[float]]]:
    """The seconds of every part of every side, in ``rounds`` rounds, in which all take turns.

    Each side lives in its own process, and only one computes at a time, so that none is helped or
    hindered by the memory and the settings of another, and what slows the machine for a while slows
    all of them. Every second round goes backwards.

    Args:
        sides: name -> a picklable function that sets up, and returns the step.
        rounds: steps that are measured.
        warm_up: steps before them.
        given: passed to all sides.

    Returns:
        side -> part -> a number per round; ``peak MB`` among them, of the process at the end.
    """
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    processes = []
    for name, make in sides.items():
        ends[name], theirs = context.Pipe()
        process = context.Process(target=_serve, args=(make, theirs, given), daemon=True)
        process.start()
        theirs.close()  # or its end would not be noticed here
        processes.append(process)
        ends[name].recv()  # ready
    measured: dict[str, dict[str, list[float]]] = {name: {} for name in sides}
    for number in range(-warm_up, rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            ends[name].send(number + warm_up)
            parts = ends[name].recv()
            if number >= 0:
                for part, seconds in parts.items():
                    measured[name].setdefault(part, []).append(seconds)
    for name, end in ends.items():
        end.send(None)
        measured[name]["peak MB"] = [end.recv()]
    for process in processes:
        process.join()
    return measured


def _serve(make: Callable[..., Step], end: Connection, given: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(1)
    step = make(**given)
    end.send(True)
    while (number := end.recv()) is not None:
        gc.collect()
        end.send(step(number))
    end.send(peak_megabytes())


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Median of the rounds' own ratios, between its lower and upper quartile."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
    return low, middle, high


def table(rows: list[list[str]]) -> str:
    """Rows under a heading, aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
