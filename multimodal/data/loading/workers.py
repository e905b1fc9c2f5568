"""DataLoader workers: deterministic, whole batches."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.context import ForkContext
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from multimodal.core.process.parent import end_with_pool
from multimodal.data.loading.forked import fork_context
from multimodal.data.loading.worker_processes import WorkerIterator, WorkerLoader
from multimodal.data.settings import LoaderSettings

Item = TypeVar("Item")


class Steps(Sampler[int]):
    """The steps of the coming iteration; persistent workers need one sampler for all of them."""

    def __init__(self, span: range = range(0)) -> None:
        self.span = span

    def __iter__(self) -> Iterator[int]:
        return iter(self.span)

    def __len__(self) -> int:
        return len(self.span)


def make_loader(
    dataset: Dataset[Item],
    steps: Steps | None,
    settings: LoaderSettings,
    persistent: bool,
) -> DataLoader[Item]:
    """Whole batches in the order of ``steps``; torch limits each worker to one thread.

    Without ``steps`` the dataset is an iterable one, and each worker's batches come in turns.
    ``persistent`` workers live as long as the loader, others as long as an iteration. On a machine
    with a GPU batches are put into page-locked memory, for asynchronous copies.
    """
    num_workers = settings.num_workers
    if num_workers is None:
        num_workers = default_num_workers()
    return WorkerLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=num_workers,
        collate_fn=_identity,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=settings.prefetch if num_workers else None,
        persistent_workers=persistent and num_workers > 0,
        timeout=settings.worker_timeout_s or 0 if num_workers else 0,
        worker_init_fn=_start_worker,
        multiprocessing_context=_start_method() if num_workers else None,
        generator=torch.Generator(),  # otherwise each iteration would draw from the global one
    )


def crosses_as_bytes(settings: LoaderSettings) -> bool:
    """Whether pictures cross to the device before they are standardised."""
    choice = settings.uint8_to_device
    return torch.cuda.is_available() if choice is None else choice


def end_workers(loader: DataLoader[Item]) -> None:
    """Shuts the persistent workers of a loader down; another iteration starts new ones."""
    if isinstance(loader._iterator, WorkerIterator):
        end_iteration(loader._iterator)
    loader._iterator = None


def end_iteration(iterator: Iterator[Item]) -> None:
    """Ends the workers of one iteration of a loader, whatever they are waiting for."""
    end_of(iterator)()


def end_of(iterator: Iterator[Item]) -> Callable[[], object]:
    """What ends the workers of an iteration; may be called at the end of Python too.

    A generator that is still open then runs its ``finally`` when the names of modules are gone.
    """
    return iterator._shutdown_workers if isinstance(iterator, WorkerIterator) else lambda: None


def default_num_workers() -> int:
    """Cores that this process may use, shared by the node's training processes, less one each.

    None if there is only one core: a worker would only alternate with training.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count())
    return max(0, (cores or 1) // processes - 1)


def on_all_cores(settings: LoaderSettings) -> LoaderSettings:
    """A process for each core that is this training's, where what they do is more than reading.

    At most 16, for their memory. None where ``num_workers`` is 0, which wants none. A block of such
    work may take a large model many times what a batch takes to be read.
    """
    if settings.num_workers == 0:
        return settings
    patience = None if settings.worker_timeout_s is None else 10 * settings.worker_timeout_s
    processes = min(16, default_num_workers() + 1)
    return replace(settings, num_workers=processes, worker_timeout_s=patience)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits torch to one thread, also where batches are loaded in the training process.

    The work per sample is too small for threads: they would mostly wait for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start_method() -> ForkContext | None:
    """Linux's own: in a process that a launcher started, its library may have set another."""
    return fork_context() if sys.platform == "linux" else None


def _start_worker(worker: int) -> None:
    # Torch's own look at the parent comes between two batches, and never where one does not end.
    end_with_pool()
    # Schedulers signal whole process groups; training still needs its workers to finish a step.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _identity(item: Item) -> Item:
    return item
