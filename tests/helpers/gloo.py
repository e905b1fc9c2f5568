"""Runs a function on several gloo processes, with a hard timeout.

They are forked from a server that has imported torch and the package already: to import those takes
two seconds of processor time, for every rank of every test.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException


def _start_server() -> None:
    """Starts it once a process; it finds our modules by the environment alone."""
    multiprocessing.set_forkserver_preload(["imported_by_ranks"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forkserver.ensure_running()


def run_ranks(
    function: Callable[..., None], world_size: int, folder: Path, *args: Any, timeout: float = 240
) -> None:
    """Calls ``function(rank, *args)`` in ``world_size`` new processes that form a process group.

    An error in a process is raised here, with what all of them wrote to standard error: the others
    fail too, as they miss it. Those that hang are ended and reported.
    """
    _start_server()
    context = mp.start_processes(
        _run,
        (world_size, str(folder), dict(os.environ), function, args),
        nprocs=world_size,
        join=False,
        start_method="forkserver",
    )
    end = time.monotonic() + timeout
    try:
        while not context.join(timeout=max(0.0, end - time.monotonic())):
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{function.__name__} did not end on all ranks in {timeout} s"
                    + _told(folder, world_size)
                )
    except (ProcessExitedException, ProcessRaisedException) as error:
        raise RuntimeError(f"{error}{_told(folder, world_size)}") from error
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def _run(
    rank: int,
    world_size: int,
    folder: str,
    environment: dict[str, str],
    function: Callable[..., None],
    args: Any,
) -> None:
    os.environ.clear()
    os.environ.update(environment)  # the server's is that of its start
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
    try:
        function(rank, *args)
    except BaseException:
        traceback.print_exc()  # an error ends the process, and then the others
        raise
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
