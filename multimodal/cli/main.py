"""The command line: arguments to a configuration, and errors before anything slow is imported."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import hydra
import hydra._internal.utils
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from multimodal.cli.jobs.cpu import keep_freed_memory, limit_openmp_spinning
from multimodal.cli.jobs.folder import refuse_taken_folder
from multimodal.cli.jobs.job import run_job
from multimodal.cli.jobs.start_time import share_start_time
from multimodal.cli.jobs.sweep import sweep_recorded
from multimodal.config import check, compose_or_explain, config_dir, normalize_args
from multimodal.config.composing.compose_once import composed_once
from multimodal.config.foreign_errors import foreign_errors_explained
from multimodal.config.roots import check_root
from multimodal.core.process.exits import errors_end_the_program, skip_last_collection
from multimodal.core.process.lean_imports import import_lightning
from multimodal.core.process.parent import (
    GRACE_S,
    end_with_parent,
    ended_with_starter,
    lives_in_worker_of,
)
from multimodal.core.process.quiet import quieten_libraries


def train() -> None:
    """`multimodal-train`, `python scripts/train.py` and `python -m multimodal.cli`."""
    run("train", _train)


command = train  # as every module of a command calls it


def _train(cfg: DictConfig) -> None:
    check(cfg)  # which imports what the configuration names, and no more
    from multimodal.cli.train import leave_a_core, train

    leave_a_core()
    train(cfg, checked=True)


def run(
    config_name: str,
    job: Callable[[DictConfig], None],
    texts: Collection[str] = (),
    paths: Collection[str] = (),
) -> None:
    """Composes ``config_name`` by the command line and runs ``job``: once, or per job of a sweep.

    ``texts`` and ``paths`` are keys whose values need no quotes, see `normalize_args`.

    A `UserError` ends the program with its message and its exit status, any other error with its
    traceback and 1. The jobs of a sweep raise theirs, so that the others run.
    """
    limit_openmp_spinning()
    keep_freed_memory()
    atexit.register(skip_last_collection)
    quieten_libraries()
    sys.argv[1:] = normalize_args(sys.argv[1:], texts, paths)
    entry, starter = _entry_point(), os.getpid()

    # Defined here so that the entry point travels with it to the workers of a launcher.
    def one_job(cfg: DictConfig) -> float | None:
        if lives_in_worker_of(starter):
            end_with_parent(starter, GRACE_S)
        import_lightning()
        quieten_libraries()
        from multimodal.training.strategies.ddp_launch import exactly_this_job

        alone = HydraConfig.get().mode == RunMode.RUN
        with _reported() if alone else nullcontext(), exactly_this_job(entry):
            check_root(cfg, config_name)
            return run_job(cfg, job)

    # Hydra would cut the traceback, and print its advertisement in place of a message.
    hydra._internal.utils.run_and_report = lambda func: func()
    main = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)
    with _reported(), composed_once(), ended_with_starter():
        cfg = compose_or_explain(sys.argv[1:], config_name)
        share_start_time(sys.argv[1:])
        if cfg is not None:
            check_root(cfg, config_name)
            refuse_taken_folder(cfg)
        with sweep_recorded():
            main(one_job)()


@contextmanager
def _reported() -> Iterator[None]:
    with errors_end_the_program(), foreign_errors_explained():
        yield


def _entry_point() -> Sequence[str]:
    """The command that started this process, to start further processes like it."""
    import __main__

    if __main__.__spec__ is None:
        return (sys.executable, os.path.abspath(sys.argv[0]))
    return (sys.executable, "-m", __main__.__spec__.name)


if __name__ == "__main__":
    train()
