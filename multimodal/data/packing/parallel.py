"""Runs jobs in processes, with results in order and progress reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from multimodal.core.process.parent import end_with_pool

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    progress: Callable[[int, int], None],
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
    results: list[Result] = []
    total, done = sum(map(size, jobs)), 0
    progress(0, total)

    def collect(arrived: Iterable[Result]) -> None:
        nonlocal done
        for job, result in zip(jobs, arrived, strict=True):
            results.append(result)
            done += size(job)
            progress(done, total)

    if workers <= 1:
        collect(map(work, jobs))
        return results
    # Spawned: a fork would take along locks that threads of the libraries hold.
    spawn = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=end_with_pool) as pool:
        try:
            collect(pool.map(work, jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results
