"""The command line: arguments to a configuration, errors before anything slow is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable

import hydra
from omegaconf import DictConfig

from multimodal.config import ConfigError, arrange, compose_or_explain, config_dir


def run(config_name: str, job: Callable[[DictConfig], None]) -> None:
    """Composes ``config_name`` by the command line and runs ``job``, once or for every sweep job.

    A configuration that does not fit ends the program with a message and exit status 2.
    """
    sys.argv[1:] = arrange(sys.argv[1:])

    def guarded(cfg: DictConfig) -> None:
        try:
            job(cfg)
        except ConfigError as error:
            _refuse(error)

    try:
        compose_or_explain(sys.argv[1:], config_name)
    except ConfigError as error:
        _refuse(error)
    # Hydra reads where the job function comes from.
    guarded.__module__ = __name__
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(
        guarded
    )()


def _refuse(error: ConfigError) -> None:
    print(error, file=sys.stderr)
    sys.exit(2)


def train() -> None:
    """`multimodal-train`, and `scripts/train.py`."""
    run("train", _train)


def _train(cfg: DictConfig) -> None:
    from multimodal.train import train  # torch and all the rest

    train(cfg)


if __name__ == "__main__":
    train()
