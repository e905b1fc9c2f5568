"""From a checked configuration to the objects of a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from multimodal.config import (
    Fault,
    StoredConfigError,
    build,
    defaults_bound,
    for_use,
    stored_config,
)
from multimodal.config.instantiating import constructor_errors
from multimodal.data.datamodule import MultimodalDataModule
from multimodal.data.manifest import manifest_hash
from multimodal.fusion_model import FusionModel
from multimodal.models import EmbeddingModel
from multimodal.objectives.objective import ContrastiveObjective, build_objective
from multimodal.runs.job import secrets_of
from multimodal.runs.origin import code_version
from multimodal.runs.secrets import redacted_tree
from multimodal.training import checkpoint_io
from multimodal.training.callbacks import StepAxis
from multimodal.training.contrastive import ContrastiveModule
from multimodal.training.ema import STATE, uses_average, weights_of
from multimodal.training.frozen_cache import FrozenCache
from multimodal.training.fusion import FusionModule
from multimodal.training.random_state import RandomState
from multimodal.training.resume import Resumed
from multimodal.training.resumed_optimizer import AllowedChanges
from multimodal.training.vocabulary import (
    fingerprints,
    require_rows,
    require_same_tokenizers,
    tokenizers_in,
    tokenizers_of,
)
from multimodal.training.wandb_logger import NOTE, WandbLogger

MODEL_PARTS = ("fusion", "tasks")  # groups of the root that the model is called with
LATER = ("checkpoint", "stop")  # callbacks, in this order


def build_model(cfg: DictConfig) -> EmbeddingModel:
    """The towers of ``cfg.model``, and the fusion and tasks of the root where there are any."""
    model = build(cfg, "model", groups=MODEL_PARTS)
    assert isinstance(model, EmbeddingModel)
    return model


def build_objective_of(cfg: DictConfig) -> ContrastiveObjective:
    """The pairs of ``cfg.pairs``, each with its own or the experiment's loss and negatives."""
    pairs = build(cfg, "pairs", convert="all")
    parts = {name: build(cfg, name) for name in ("loss", "negatives", "candidates")}
    with constructor_errors(cfg.pairs):
        return build_objective(pairs, embed_dim=cfg.embed_dim, **parts)


def build_module(cfg: DictConfig) -> ContrastiveModule | FusionModule:
    """The module that trains the model: tasks on a fusion, or pairs alone."""
    model = build_model(cfg)
    shared: dict[str, Any] = {
        "optimizer": build(cfg, "optimizer"),
        "scheduler": build(cfg, "scheduler") if cfg.scheduler else None,
        "weight_decay": cfg.optimizer.get("weight_decay", 0.0),
        "seed": cfg.seed,
    }
    module: ContrastiveModule | FusionModule
    if isinstance(model, FusionModel):
        objective = build_objective_of(cfg) if cfg.pairs else None
        module = FusionModule(model=model, objective=objective, **shared)
    else:
        objective = build_objective_of(cfg)
        with constructor_errors(cfg):
            module = ContrastiveModule(
                model=model, objective=objective, micro_batch_size=cfg.micro_batch_size, **shared
            )
    with constructor_errors(cfg):
        module.make_optimizer()  # refuses here, not on every rank
    return module


def build_data(cfg: DictConfig) -> MultimodalDataModule:
    """The data module of ``cfg.data``."""
    data = build(cfg, "data")
    assert isinstance(data, MultimodalDataModule)
    return data


def build_trainer(
    cfg: DictConfig,
    folder: Path,
    run_config: str,
    origin: dict[str, Any] | None = None,
    resumed: Resumed | None = None,
) -> pl.Trainer:
    """The trainer of ``cfg.trainer`` with this run's loggers, callbacks and checkpoint writer.

    Args:
        cfg: the configuration.
        folder: the run's.
        run_config: the configuration as text, for its checkpoints and loggers (`portable_yaml`).
        origin: of the run (`origin_of`), for its checkpoints.
        resumed: what the run goes on from.
    """
    callbacks: list[pl.Callback] = [RandomState(), StepAxis()]
    if resumed is not None and resumed.changed and not resumed.path.is_dir():
        callbacks.append(AllowedChanges(resumed.changed))
    # What saves comes after all that a step changes, and what ends the run after that.
    for name in sorted(cfg.callbacks, key=lambda name: LATER.index(name) if name in LATER else -1):
        if cfg.callbacks[name] is None:
            continue
        extra: dict[str, Any] = {}
        if name == "checkpoint":
            extra = {
                "folder": str(folder / "checkpoints"),
                "run_config": run_config,
                "origin": origin,
            }
        if name in ("nonfinite", "spikes"):
            extra = {"folder": str(folder)}
        callbacks.append(build(cfg, "callbacks", str(name), convert="all", **extra))
    if cfg.data.get("cache_frozen"):
        transforms = OmegaConf.to_container(cfg.data.transforms, resolve=True)
        assert isinstance(transforms, dict)
        kept = {str(name): transform for name, transform in transforms.items()}
        with constructor_errors(cfg.cache_frozen):
            callbacks.append(FrozenCache(**cfg.cache_frozen, transforms=kept))
    logger = build(cfg, "logger") if cfg.logger else False
    if isinstance(logger, dict | DictConfig):
        logger = [item for item in logger.values() if item is not None]
    for item in logger if isinstance(logger, list) else []:
        if isinstance(item, WandbLogger):
            _prepare_wandb(item, cfg, run_config, folder, resumed)
    trainer = build(
        cfg,
        "trainer",
        callbacks=callbacks,
        logger=logger,
        plugins=[checkpoint_io.AtomicCheckpointIO()],
        default_root_dir=str(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    assert isinstance(trainer, pl.Trainer)
    return trainer


def _prepare_wandb(
    logger: WandbLogger, cfg: DictConfig, run_config: str, folder: Path, resumed: Resumed | None
) -> None:
    content = OmegaConf.to_container(OmegaConf.create(run_config))
    assert isinstance(content, dict)
    logger.describe({str(key): value for key, value in content.items()})
    logger.rename(OmegaConf.select(OmegaConf.create(content), "logger.wandb.name"))
    if resumed is not None:
        run_id = resumed.loggers.get("wandb", {}).get("id")
        logger.go_on(run_id, resumed.step, resumed.path.parents[1] / NOTE)
    elif cfg.resume == "auto":  # killed before its first checkpoint
        logger.go_on(None, -1, folder / NOTE)


def portable_yaml(cfg: DictConfig) -> str:
    """The configuration as YAML, interpolations resolved and every default of a class bound in.

    Keys and passwords are left out.
    """
    bound = defaults_bound(cfg)
    raw, tree = (OmegaConf.to_container(bound, resolve=resolve) for resolve in (False, True))
    secrets = [secret for _, secret in secrets_of(cfg)]
    return str(OmegaConf.to_yaml(OmegaConf.create(redacted_tree(tree, raw, secrets))))


def origin_of(cfg: DictConfig, data: MultimodalDataModule) -> dict[str, Any]:
    """Where a run comes from: the code's version, hashes of the manifests and the tokenizers."""
    sources = cfg.data.sources
    manifests = {
        str(name): manifest_hash(source.manifest)
        for name, source in sources.items()
        if source is not None and source.get("manifest")
    }
    tokenizers = fingerprints(tokenizers_in(data.transforms))
    return {"code": code_version(), "manifests": manifests, "tokenizers": tokenizers}


def load_model(
    path: str | Path,
    allowed_packages: Sequence[str] = (),
    weights: str | None = None,
    transforms: DictConfig | None = None,
    addresses: Sequence[str] = (),
) -> tuple[EmbeddingModel, DictConfig]:
    """The trained towers of a checkpoint, in eval mode, and the configuration they come from.

    Args:
        path: of the checkpoint.
        allowed_packages: of the caller's own, that the checkpoint's towers may come from; what
            the checkpoint itself says of it does not count.
        weights: ``average`` or ``raw``, see `uses_average`; None: as the run evaluates.
        transforms: the configuration of those that will feed it, checked by the caller; None:
            the checkpoint's own.
        addresses: that the caller names; no other one in the checkpoint is opened.

    Raises:
        CheckpointError: if the file is missing or damaged, has no configuration in it, or not the
            weights that are asked for; or if a tokenizer is not the one it was trained with.
        ConfigError: if its configuration names what may not stand there, or a tokenizer gives
            ids that the model does not know.
    """
    checkpoint = checkpoint_io.read(path)
    cfg = for_use(config_of(checkpoint, path, allowed_packages, addresses))
    for block in ("model", "data.transforms"):
        if not isinstance(OmegaConf.select(cfg, block), DictConfig):
            faults = [Fault(block, "is not a block of keys: nothing can be embedded with it")]
            raise StoredConfigError(faults, str(path))
    model = build_model(cfg)
    prefix = "model."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in weights_of(checkpoint, path, weights).items()
        if name.startswith(prefix)
    }
    model.load_state_dict(state)
    if STATE in checkpoint:
        average = uses_average(checkpoint, path, weights)
        used = "the moving average of the weights is used (weights=raw: the weights themselves)"
        other = "the weights themselves are used (weights=average: their moving average)"
        print(f"{path}: {used if average else other}", file=sys.stderr)
    own = cfg if transforms is None else _with_transforms(cfg, transforms)
    tokenizers = tokenizers_of(own)
    require_rows(model, tokenizers)
    require_same_tokenizers(checkpoint, fingerprints(tokenizers), path)
    return model.eval(), cfg


def _with_transforms(cfg: DictConfig, transforms: DictConfig) -> DictConfig:
    changed = cfg.copy()
    changed.data.transforms = OmegaConf.to_container(transforms, resolve=True)
    return changed


def config_of(
    checkpoint: dict[str, Any],
    path: str | Path,
    allowed_packages: Sequence[str] = (),
    addresses: Sequence[str] = (),
) -> DictConfig:
    """The configuration inside a checkpoint, judged (`stored_config`) and not yet used.

    Raises:
        CheckpointError: if it holds none.
        ConfigError: if it names what may not stand there.
    """
    if "config" not in checkpoint:
        raise checkpoint_io.CheckpointError(f"{path} holds no configuration: not one of our runs")
    return stored_config(checkpoint["config"], path, allowed_packages, addresses)
