"""The anchor run: an earlier run that towers are loaded from, usually frozen.

ImageBind (Girdhar et al. 2023, section 3.3) aligns every modality to the frozen image tower of a
trained CLIP. `anchor.checkpoint` names that run; where it is null, the sample experiment trains
a small one first and keeps it for later runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from multimodal.config import named_by
from multimodal.core.errors import ConfigError, ConfigProblem, UserError
from multimodal.core.hashing import stable_hash
from multimodal.core.process import lock
from multimodal.core.process.parent import GRACE_S, parent_of_children
from multimodal.core.process.provenance import is_first_rank
from multimodal.core.process.quiet import note
from multimodal.data.shards.manifest import manifest_hash
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.load import config_of
from multimodal.inference.checkpoint.locate import checkpoint_at
from multimodal.inference.checkpoint.tokenizer_check import (
    fingerprints,
    tokenizer_mismatches,
    tokenizers_of,
)
from multimodal.inference.checkpoint.weights import weights_of
from multimodal.models.towers import EmbeddingModel
from multimodal.models.tuning import has_adapters, load_plain, plain_state

# The keys that determine the anchor's weights; loggers, folders and the like do not.
WEIGHT_KEYS = (
    "seed", "embed_dim", "model", "pairs", "loss", "negatives", "candidates", "data", "optimizer",
    "scheduler", "micro_batch_size",
)  # fmt: skip
OPTIONAL_WEIGHT_KEYS = ("fusion", "tasks")
EMBEDDING_ONLY_KEYS = (
    "head.",
    "scale",
)  # of a tower: what a fusion that reads its tokens leaves out
# Environment variables that mark a process as a rank of torchrun or srun.
LAUNCHER_ENV_PREFIXES = (
    "SLURM_", "TORCHELASTIC_", "GROUP_", "ROLE_", "MASTER_", "RANK", "LOCAL_RANK", "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
)  # fmt: skip
FORWARDED = ("trainer", "trainer.devices", "trainer.accelerator", "trainer.precision", "debug")


class AnchorError(UserError, RuntimeError):
    """An anchor that is missing, fails to train, or does not fit this run's towers."""


def forwarded(overrides: Sequence[str]) -> list[str]:
    """Those of the command's overrides that say where and how to train, not what."""
    return [o for o in overrides if o.lstrip("+").split("=", 1)[0] in FORWARDED]


def of_all_devices(batch_size: int, trainer: DictConfig) -> int:
    """What of a global batch each device takes, at least one sample.

    The anchor's experiment counts per device, of the one that it is written for.
    """
    devices = trainer.get("devices")
    count = devices if isinstance(devices, int) and devices > 1 else 1
    return max(1, batch_size // (count * int(trainer.get("num_nodes") or 1)))


def cache_dir(cfg: DictConfig, anchor_cfg: DictConfig) -> Path:
    """The folder of the anchor run that ``anchor_cfg`` describes: equal settings, equal folder."""
    settings = OmegaConf.to_container(anchor_cfg, resolve=True)
    assert isinstance(settings, dict)
    settings_of_weights = {name: settings.get(name) for name in WEIGHT_KEYS}
    settings_of_weights |= {
        name: settings[name] for name in OPTIONAL_WEIGHT_KEYS if settings.get(name)
    }
    if (settings.get("matryoshka") or {}).get("dims"):
        settings_of_weights["matryoshka"] = settings["matryoshka"]
    similarity = settings.get("similarity")
    if similarity and similarity != {"_target_": "multimodal.objectives.Cosine"}:  # the default
        settings_of_weights["similarity"] = similarity
    settings_of_weights["data"] = {k: v for k, v in settings["data"].items() if k != "num_workers"}
    sources = anchor_cfg.data.sources
    hashes = sorted(manifest_hash(sources[name].manifest) for name in sources)
    hashes += sorted(fingerprints(tokenizers_of(anchor_cfg)).values())
    steps = anchor_cfg.trainer.get("max_steps")
    digest = stable_hash(repr(settings_of_weights), repr(hashes), repr(steps)) & (2**40 - 1)
    return Path(cfg.anchor.folder) / f"{cfg.anchor.experiment}-{digest:010x}"


def resolve_anchor(cfg: DictConfig) -> str | None:
    """The checkpoint to take the anchor's towers from; trains the sample anchor if there is none.

    Returns:
        A path, or None where the experiment has no anchor.

    Raises:
        AnchorError: if training it failed.
        CheckpointError: if ``anchor.checkpoint`` names a file that is not there.
    """
    if cfg.anchor is None:
        return None
    if cfg.anchor.checkpoint is None and cfg.anchor.experiment is None:
        raise AnchorError(
            f"anchor.checkpoint is not given: {', '.join(cfg.anchor.towers)} come from a trained "
            "model; make a checkpoint of foreign weights by scripts/import_weights.py, or take one "
            "of your own runs"
        )
    if cfg.anchor.checkpoint is not None:
        given = checkpoint_at(cfg.anchor.checkpoint)
        store.read(given)
        return str(given)
    overrides = [f"+experiment={cfg.anchor.experiment}", f"seed={cfg.seed}"]
    config_folders: list[str] = []
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        overrides += forwarded(hydra.overrides.task)
        config_folders = [
            source.path
            for source in hydra.runtime.config_sources
            if source.provider == "command-line"
        ]
    try:
        anchor_cfg = compose("train", overrides)
        share = of_all_devices(anchor_cfg.data.batch_size, anchor_cfg.trainer)
        if share != anchor_cfg.data.batch_size:
            overrides.append(f"data.batch_size={share}")
            anchor_cfg = compose("train", overrides)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError([ConfigProblem("anchor.experiment", reason)]) from error
    folder = cache_dir(cfg, anchor_cfg)
    done = folder / "metrics.json"
    if is_first_rank():
        while not done.exists():
            _wait_for_holder(folder, done)
            if not done.exists():
                _train(cfg.anchor.experiment, overrides, config_folders, folder)
    _wait_for(done)
    path = store.newest(folder / "checkpoints")
    if path is None:
        raise AnchorError.mistake(
            f"the anchor's folder {folder} holds no checkpoint; remove it and retry"
        )
    note(f"anchor: {path}")
    return str(path)


def _train(experiment: str, overrides: list[str], config_folders: list[str], folder: Path) -> None:
    print(
        f"anchor.checkpoint is not given: training the sample anchor (+experiment={experiment}) "
        f"first; it is kept in {folder} for later runs",
        file=sys.stderr,
    )
    command = [sys.executable, "-m", "multimodal.cli"]
    for config_folder in config_folders:
        command += ["--config-dir", config_folder]
    # In a separate process: this one has not started its ranks or used its random numbers yet.
    command += [*overrides, "resume=auto", f"hydra.run.dir={folder}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_ENV_PREFIXES)}
    with subprocess.Popen(command, env=environment | parent_of_children()) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:  # which reaches both: it saves a checkpoint
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            process.kill()
            raise
    if status != 0 and lock.holder(folder) is None:  # otherwise another run was first
        raise AnchorError(f"training the anchor failed with exit status {status}: see above")


def _wait_for_holder(folder: Path, done: Path) -> None:
    # It may end without having finished, as when it was asked to.
    other = lock.holder(folder)
    if other is not None:
        print(f"anchor: another run trains it ({other}); waiting for {done}", file=sys.stderr)
    while other is not None and not done.exists():
        time.sleep(1.0)
        other = lock.holder(folder)


def _wait_for(done: Path, limit_s: float = 6 * 3600.0) -> None:
    # Under torchrun or srun the other ranks are here while the first one trains.
    start = time.monotonic()
    while not done.exists():
        if time.monotonic() - start > limit_s:
            raise AnchorError(f"waited {limit_s / 3600:.0f} h for the first rank to write {done}")
        time.sleep(1.0)


def load_anchor(
    model: EmbeddingModel, cfg: DictConfig, path: str, tokenizers: Mapping[str, str]
) -> DictConfig:
    """Fills ``cfg.anchor.towers`` of ``model`` from the checkpoint, and checks that they fit.

    A tower that only a fusion reads has no head, and takes the encoder's weights alone.

    Args:
        model: of this run.
        cfg: this run's configuration.
        path: of the checkpoint.
        tokenizers: modality -> fingerprint of this run's tokenizer.

    Returns:
        The configuration of the anchor's run.

    Raises:
        AnchorError: if towers do not fit; the message names every tower, tensor and setting.
    """
    checkpoint = store.read(path)
    anchor_cfg = config_of(checkpoint, path, list(cfg.get("allowed_packages") or ()), named_by(cfg))
    state = weights_of(checkpoint, path)
    problems: list[str] = []
    for tower in cfg.anchor.towers:
        prefix = f"model.towers.{tower}."
        weights = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.items()
            if name.startswith(prefix)
        }
        if not weights:
            problems.append(f"the anchor has no tower '{tower}'")
            continue
        if model.tower(tower).head is None:
            weights = {n: t for n, t in weights.items() if not n.startswith(EMBEDDING_ONLY_KEYS)}
        tuned = not has_adapters(weights)
        own = plain_state(model.towers[tower]) if tuned else model.towers[tower].state_dict()
        for name in sorted(own.keys() | weights.keys()):
            ours, theirs = own.get(name), weights.get(name)
            if ours is None or theirs is None or ours.shape != theirs.shape:
                problems.append(
                    f"towers.{tower}.{name}: checkpoint has {_shape(theirs)}, this run has "
                    f"{_shape(ours)}"
                )
        known = tower in checkpoint.get("origin", {}).get("tokenizers", {}) and tower in tokenizers
        if known:  # by its behaviour, wherever its file is
            problems += tokenizer_mismatches(checkpoint, {tower: tokenizers[tower]}, path)
        problems += _differing_transform(tower, cfg, anchor_cfg, () if known else ("tokenizer",))
        if not problems:
            (load_plain if tuned else _load)(model.towers[tower], weights)
    if problems:
        shown = "\n  ".join(problems[:20])
        raise AnchorError.mistake(f"{path} does not fit this run's towers:\n  {shown}")
    return anchor_cfg


def _load(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    module.load_state_dict(weights)


def _shape(tensor: Any) -> str:
    return "absent" if tensor is None else str(list(tensor.shape))


def _differing_transform(
    tower: str, cfg: DictConfig, anchor_cfg: DictConfig, more: Sequence[str]
) -> list[str]:
    # A frozen tower needs the inputs that it was trained on: the same tokens, the same
    # normalisation.
    ours, theirs = (c.data.transforms.get(tower) for c in (cfg, anchor_cfg))
    if ours is None or theirs is None:
        return []
    return [
        f"data.transforms.{tower}.{key}: checkpoint has {theirs.get(key)}, this run has "
        f"{ours.get(key)}"
        for key in (*more, "context_length", "size", "mean", "std")
        if ours.get(key) != theirs.get(key)
    ]
