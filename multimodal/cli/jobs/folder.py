"""What a run's folder holds already, and whether a run may begin in it."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multimodal.core.errors import ConfigError, ConfigProblem, UserError
from multimodal.core.process import lock
from multimodal.core.process.provenance import is_first_rank
from multimodal.core.process.secrets import redacted, secrets_in


class RunFolderError(UserError, RuntimeError):
    """A folder that holds a run already, where another one is to begin."""


def refuse_taken_folder(cfg: DictConfig) -> None:
    """Refuses what `run_job` would refuse, before Hydra writes into the folder.

    Args:
        cfg: as composed for a single run, with its `hydra` block.

    Raises:
        FolderInUseError: if another run is under way in the folder.
        RunFolderError: if the folder holds a run that this one does not resume.
        ConfigError: if the folder would be named by a secret.
    """
    try:
        folder = Path(str(OmegaConf.select(cfg, "hydra.run.dir")))
    except OmegaConfBaseException:
        return  # made of what Hydra knows only later
    refuse_secret_names(cfg, folder)
    if cfg.hydra.output_subdir is None or not is_first_rank() or not folder.is_dir():
        return
    lock.refuse_if_held(folder)
    refuse_to_start_over(cfg.get("resume", "auto"), folder)


def refuse_secret_names(cfg: DictConfig, folder: Path) -> None:
    """Refuses a folder whose name would give away a key or a password.

    Raises:
        ConfigError: naming the keys that hold it.
    """
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    tree.pop("hydra", None)
    secrets = [(key, secret) for key, secret in secrets_in(tree) if len(secret) > 3]
    keys = [key for key, secret in secrets if redacted(str(folder), [secret]) != str(folder)]
    if keys:
        problem = (
            f"names the run's folder by a secret (of {', '.join(keys)}), and names of folders are "
            "written down everywhere; give hydra.run.dir=outputs/NAME"
        )
        raise ConfigError([ConfigProblem("hydra.run.dir", problem)])


def refuse_to_start_over(resume: str | None, folder: Path) -> None:
    """Rejects a new run in a folder that holds one.

    Args:
        resume: the checkpoint to resume from: ``auto``, a path, or None.
        folder: the run's.

    Raises:
        RunFolderError: if it does not resume the existing run.
    """
    checkpoints = folder / "checkpoints"
    there = [path.name for path in sorted(checkpoints.glob("step=*.ckpt"))[-1:]]
    there += ["metrics.csv"] if (folder / "metrics.csv").exists() else []
    own = resume is not None and (
        os.path.dirname(os.path.realpath(resume)) == os.path.realpath(checkpoints)
    )
    if not there or resume == "auto" or own:
        return
    given = "null" if resume is None else resume
    raise RunFolderError.mistake(
        f"{folder} holds a run already ({', '.join(there)}), and resume={given} would write "
        "another one over it. Go on with that run by resume=auto, give this one a folder of its "
        f"own by hydra.run.dir=outputs/NAME, or delete the folder: rm -r '{folder}'"
    )
