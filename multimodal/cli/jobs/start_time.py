"""Ranks that were started separately (torchrun, srun) agree on their run's start time.

The folder of a run holds the time of its start. Ranks that read it from their own clocks would
scatter their outputs over several folders.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import Any

import hydra.core.utils

from multimodal.core.errors import UserError


class StartTimeError(UserError, RuntimeError):
    """Ranks that cannot agree on the folder of their run."""


def share_start_time(words: Sequence[str]) -> None:
    """Makes `${now:...}` the same on all ranks, where several are started from outside.

    Under torchrun the ranks ask its store, under srun SLURM's start time of the job is taken. A
    restart by torchrun finds the time of the first start, and so the folder of the first.

    Args:
        words: the command line; nothing is done if it sets ``hydra.run.dir``.

    Raises:
        StartTimeError: if they cannot agree.
    """
    if any(word.startswith("hydra.run.dir=") for word in words):
        return
    moment = _shared_moment()
    if moment is not None:
        _freeze_hydra_now(moment)


def _freeze_hydra_now(moment: float) -> None:
    class Then(datetime):
        """A frozen clock."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Then:
            return cls.fromtimestamp(moment, tz)

    # What its resolver of ``${now:...}`` asks; `tests/test_torchrun.py` fails if that changes.
    hydra.core.utils.datetime = Then  # type: ignore[attr-defined]


def _shared_moment() -> float | None:
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        if int(environment.get("WORLD_SIZE", "1")) == 1:
            return None
        if environment.get("TORCHELASTIC_USE_AGENT_STORE", "False") != "True":
            raise StartTimeError(_advice("torchrun without its own store"))
        return _of_the_store()
    if int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        if "SLURM_JOB_START_TIME" in environment:
            return float(environment["SLURM_JOB_START_TIME"])
        raise StartTimeError(_advice("srun"))
    if int(environment.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in environment:
        raise StartTimeError(_advice("an unknown launcher"))
    return None


def _advice(launcher: str) -> str:
    return (
        f"this run was started by {launcher} on several ranks, and each would name the run's "
        "folder by its own clock; give one folder to all: hydra.run.dir=outputs/NAME"
    )


def _of_the_store() -> float:
    import torch.distributed  # only where several ranks start, which need it anyway

    store: Any = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False
    )
    return float(store.compare_set("multimodal/start_time", "", repr(time.time())))
