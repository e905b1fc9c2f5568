"""Runs jobs in processes, here or of a Dask cluster, with results in order and progress reports."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

from multimodal.core.extras import extra_needed
from multimodal.core.process.parent import end_with_pool

CONNECT_S = 30.0  # seconds until a scheduler has to answer

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
# Work, jobs, progress, what a job counts in it -> results.
Runner = Callable[[Callable[[Any], Any], Sequence[Any], Progress, Callable[[Any], int]], list[Any]]


def in_processes(workers: int) -> Runner:
    """Runs jobs in this many processes of this machine.

    Raises:
        ValueError: if there are none.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    return functools.partial(_in_processes, workers)


def in_parallel(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    progress: Progress,
    size: Callable[[Job], int] = lambda job: 1,
) -> list[Result]:
    """``work`` of every job, in the order of the jobs.

    Args:
        work: a function of a module, as it travels to other processes.
        jobs: what it is called with.
        workers: processes; 1 works in this one.
        progress: called with the finished amount and the total, after each job.
        size: what a job counts in this.
    """
    return in_processes(workers)(work, jobs, progress, size)


def in_cluster(address: str) -> Runner:
    """Runs jobs on the workers of a Dask cluster.

    Args:
        address: of its scheduler, ``tcp://host:port``.
    """
    return functools.partial(_in_cluster, address)


def _in_processes(
    workers: int,
    work: Callable[[Any], Any],
    jobs: Sequence[Any],
    progress: Progress,
    size: Callable[[Any], int],
) -> list[Any]:
    if workers == 1:
        return _collected(map(work, jobs), jobs, progress, size)
    # Spawned: a fork would take along locks that threads of the libraries hold.
    spawn = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=end_with_pool) as pool:
        try:
            return _collected(pool.map(work, jobs), jobs, progress, size)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _in_cluster(
    address: str,
    work: Callable[[Any], Any],
    jobs: Sequence[Any],
    progress: Progress,
    size: Callable[[Any], int],
) -> list[Any]:
    with extra_needed("dask", "--dask"):
        import distributed
    cluster: Any = distributed  # without types
    try:
        client = cluster.Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {address}: {error}") from error
    with client:
        # Not pure: a shard that somebody has deleted is to be packed again.
        futures = client.map(work, jobs, pure=False)
        place = {future.key: number for number, future in enumerate(futures)}
        total, done = sum(map(size, jobs)), 0
        progress(0, total)
        try:
            for future in cluster.as_completed(futures):
                if future.status == "error":
                    future.result()
                done += size(jobs[place[future.key]])
                progress(done, total)
            return list(client.gather(futures))
        except BaseException:
            client.cancel(futures)
            raise


def _collected(
    arrived: Iterable[Any], jobs: Sequence[Any], progress: Progress, size: Callable[[Any], int]
) -> list[Any]:
    results = []
    total, done = sum(map(size, jobs)), 0
    progress(0, total)
    for job, result in zip(jobs, arrived, strict=True):
        results.append(result)
        done += size(job)
        progress(done, total)
    return results
