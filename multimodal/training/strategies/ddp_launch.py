"""Makes Lightning's DDP processes run exactly the job that starts them, in its output folder.

Lightning starts the processes of the other local ranks by this process's own command line. Under
``--multirun`` that command is the whole sweep, and a launcher's worker has no such command at all.
Here the command is made of what Hydra says of the job: its overrides, its folder, and no sweep.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning_fabric.strategies.launchers.subprocess_script as fabric
import pytorch_lightning.strategies.launchers.subprocess_script as lightning
import torch.distributed
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from multimodal.core.process.parent import parent_of_children

# These are set below, or would start the sweep again.
_NOT_PASSED_ON = (
    "hydra.mode", "hydra.run.", "hydra.sweep.", "hydra.sweeper", "hydra/sweeper", "hydra.launcher",
    "hydra/launcher", "hydra.output_subdir", "hydra.job.name", "hydra.job.num", "hydra.job.id",
)  # fmt: skip


def command_of_rank(entry: Sequence[str], local_rank: int) -> tuple[list[str], str]:
    """The command line of this job's process of ``local_rank``, and the folder it starts in."""
    hydra: Any = HydraConfig.get()
    command = [*entry, "--config-name", str(hydra.job.config_name)]
    options = {"main": "--config-path", "command-line": "--config-dir"}
    for source in hydra.runtime.config_sources:
        if source.provider in options and source.schema == "file":
            command += [options[source.provider], source.path]
    for word in (*hydra.overrides.task, *hydra.overrides.hydra):
        if not word.lstrip("+~").startswith(_NOT_PASSED_ON):
            command.append(word)
    for key in ("num", "id"):
        if not OmegaConf.is_missing(hydra.job, key):
            command.append(f"hydra.job.{key}={hydra.job[key]}")
    return [
        *command,
        f"hydra.run.dir={_quoted(hydra.runtime.output_dir)}",
        f"hydra.job.name={hydra.job.name}_rank{local_rank}",
        "hydra.output_subdir=null",
        "hydra.mode=RUN",
    ], str(hydra.runtime.cwd)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@contextmanager
def exactly_this_job(entry: Sequence[str]) -> Iterator[None]:
    """Within, Lightning starts ranks by `command_of_rank`; after, nothing of the job is left.

    Left by Lightning are the process group, the rank, address and seed in the environment: the
    next job of a sweep would take itself for a rank of this one. What is started within ends with
    this process, however that one ends.

    Args:
        entry: the command that starts the program, without its arguments.
    """
    environment = dict(os.environ)
    modules: tuple[Any, ...] = (lightning, fabric)
    originals = [module._hydra_subprocess_cmd for module in modules]
    for module in modules:
        module._hydra_subprocess_cmd = lambda local_rank: command_of_rank(entry, local_rank)
    os.environ.update(parent_of_children())
    try:
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module._hydra_subprocess_cmd = original
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
