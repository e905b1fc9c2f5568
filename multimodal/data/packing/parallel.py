"""Work spread over processes, with its results in order and its progress told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

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
        progress: told what is done and the sum of all, after each job.
        size: what a job counts in this.
    """
    results: list[Result] = []
    total, done = sum(map(size, jobs)), 0
    progress(0, total)

    def collect(found: Iterable[Result]) -> None:
        nonlocal done
        for job, result in zip(jobs, found, strict=True):
            results.append(result)
            done += size(job)
            progress(done, total)

    if workers <= 1:
        collect(map(work, jobs))
        return results
    # Spawned: a fork would take along locks that threads of the libraries hold.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            collect(pool.map(work, jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results
