"""The command line: words to a configuration, and faults before anything slow is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import hydra
from omegaconf import DictConfig

from multimodal.config import ConfigError, arrange, compose_or_explain, config_dir
from multimodal.runs.job import run_job
from multimodal.runs.start_time import UnsharedStart, share_start_time
from multimodal.runs.sweep import SweepError
from multimodal.runs.threads import share_cores


def train() -> None:
    """`multimodal-train`, `python scripts/train.py` and `python -m multimodal.cli`."""
    run("train", _train)


def _train(cfg: DictConfig) -> None:
    from multimodal.train import train  # torch and all the rest

    train(cfg)


def run(config_name: str, job: Callable[[DictConfig], None]) -> None:
    """Composes ``config_name`` by the command line and runs ``job``: once, or per job of a sweep.

    Words that do not compose, and a `ConfigError` of the job, end the program with the message
    and exit status 2; a checkpoint that cannot be used, with the message and exit status 1.
    """
    share_cores()
    sys.argv[1:] = arrange(sys.argv[1:])
    try:
        compose_or_explain(sys.argv[1:], config_name)
        share_start_time(sys.argv[1:])
    except (ConfigError, UnsharedStart) as error:
        _refuse(error)
    entry = _entry_point()

    # Defined here so that the entry point travels with it to the workers of a launcher.
    def one_job(cfg: DictConfig) -> float | None:
        from multimodal.data.errors import OtherBatches
        from multimodal.training.checkpoint_io import CheckpointError
        from multimodal.training.ddp_launch import exactly_this_job

        try:
            with exactly_this_job(entry):
                return run_job(cfg, job)
        except ConfigError as error:
            _refuse(error)
        except (CheckpointError, OtherBatches, SweepError) as error:
            _refuse(error, status=1)

    main = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)
    main(one_job)()


def _entry_point() -> Sequence[str]:
    """The command that started this process, for processes that are to be its like."""
    import __main__

    if __main__.__spec__ is None:
        return (sys.executable, os.path.abspath(sys.argv[0]))
    return (sys.executable, "-m", __main__.__spec__.name)


def _refuse(error: Exception, status: int = 2) -> NoReturn:
    print(error, file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    train()
