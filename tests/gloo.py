"""Runs a function on several gloo processes, with a hard timeout."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(
    function: Callable[..., None], world_size: int, folder: Path, *args: Any, timeout: float = 240
) -> None:
    """Calls ``function(rank, *args)`` in ``world_size`` new processes that form a process group.

    An error in a process is raised here; those that hang are ended and reported.
    """
    context = mp.spawn(
        _run, (world_size, str(folder / "store"), function, args), nprocs=world_size, join=False
    )
    end = time.monotonic() + timeout
    try:
        while not context.join(timeout=max(0.0, end - time.monotonic())):
            if time.monotonic() > end:
                raise TimeoutError(f"{function.__name__} did not end on all ranks in {timeout} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def _run(rank: int, world_size: int, store: str, function: Callable[..., None], args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    try:
        function(rank, *args)
    finally:
        dist.destroy_process_group()
