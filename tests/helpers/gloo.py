"""Runs a function on several gloo processes, with a hard timeout."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing import ProcessExitedException


def run_ranks(
    function: Callable[..., None], world_size: int, folder: Path, *args: Any, timeout: float = 240
) -> None:
    """Calls ``function(rank, *args)`` in ``world_size`` new processes that form a process group.

    An error in a process is raised here; those that hang are ended and reported. A process that
    dies without a Python error is reported with what all of them wrote to standard error.
    """
    context = mp.spawn(
        _run, (world_size, str(folder), function, args), nprocs=world_size, join=False
    )
    end = time.monotonic() + timeout
    try:
        while not context.join(timeout=max(0.0, end - time.monotonic())):
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{function.__name__} did not end on all ranks in {timeout} s"
                    + _told(folder, world_size)
                )
    except ProcessExitedException as error:
        raise RuntimeError(f"{error}{_told(folder, world_size)}") from error
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def _run(rank: int, world_size: int, folder: str, function: Callable[..., None], args: Any) -> None:
    # The descriptor, not sys.stderr: what aborts a process writes from C++.
    with open(_output(Path(folder), rank), "w") as file:
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    function(rank, *args)  # an error ends the process with its traceback, and then the others
    gc.collect()  # DDP's reducer holds the group, in cycles
    dist.barrier()  # no rank closes its connections while another one still reads from them
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of gloo and autograd may outlive the interpreter, and abort the process at its end.
    os._exit(0)


def _output(folder: Path, rank: int) -> Path:
    return folder / f"stderr_{rank}.txt"


def _told(folder: Path, world_size: int) -> str:
    texts = {rank: _output(folder, rank) for rank in range(world_size)}
    return "".join(
        f"\n--- standard error of rank {rank}\n{path.read_text(errors='replace')[-4000:]}"
        for rank, path in texts.items()
        if path.exists()
    )
