"""From a checked configuration to the objects of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from multimodal.config import (
    build,
)
from multimodal.config.instantiating import constructor_errors
from multimodal.config.rules.optimizers import SCHEDULE_FREE
from multimodal.core.process.provenance import code_version
from multimodal.data.datamodule import MultimodalDataModule
from multimodal.data.shards.manifest import manifest_hash
from multimodal.inference.checkpoint.load import build_model
from multimodal.inference.checkpoint.tokenizer_check import (
    fingerprints,
    tokenizers_in,
)
from multimodal.models.fusion_model import FusionModel
from multimodal.models.towers import EmbeddingModel
from multimodal.objectives.kernels.tiles import choose_tiles
from multimodal.objectives.objective import ContrastiveObjective, make_objective
from multimodal.training import checkpoint_plugin
from multimodal.training.callbacks.frozen_cache import FrozenCache
from multimodal.training.callbacks.optimizer_overrides import AllowedChanges
from multimodal.training.callbacks.progress import StepAxis
from multimodal.training.callbacks.rng_state import RandomState
from multimodal.training.callbacks.schedule_free import ScheduleFreeWeights
from multimodal.training.compiling import CompileReport, compile_towers
from multimodal.training.loggers.wandb import NOTE, WandbLogger
from multimodal.training.modules.contrastive import ContrastiveModule
from multimodal.training.modules.fusion import FusionModule
from multimodal.training.modules.self_distilled import SelfDistiller
from multimodal.training.profiler import NoProfiler
from multimodal.training.resume import Resumed
from multimodal.training.teacher import Teacher

CALLBACKS_RUN_LAST = ("checkpoint", "stop")  # callbacks, in this order


def build_objective(cfg: DictConfig) -> ContrastiveObjective:
    """The pairs of ``cfg.pairs``, each with its own or the experiment's loss and negatives."""
    pairs = build(cfg, "pairs", convert="all")
    parts = {name: build(cfg, name) for name in ("loss", "negatives", "candidates")}
    if cfg.get("similarity") is not None:  # configurations of earlier versions have none
        parts["similarity"] = build(cfg, "similarity")
    given = OmegaConf.select(cfg, "matryoshka")
    parts["tiles"] = choose_tiles(cfg.get("kernels", "torch"), run_device(cfg))
    wrapped: Any = None if given is None else OmegaConf.to_container(given)
    with constructor_errors(cfg.pairs):
        return make_objective(
            pairs,
            embed_dim=cfg.embed_dim,
            matryoshka=wrapped,
            **parts,
        )


def build_module(cfg: DictConfig) -> ContrastiveModule | FusionModule:
    """The module that trains the model: tasks on a fusion, or pairs alone."""
    model = build_model(cfg)
    compile_towers(model, run_device(cfg))
    shared: dict[str, Any] = {
        "optimizer": build(cfg, "optimizer", convert="all"),
        "scheduler": build(cfg, "scheduler") if cfg.scheduler else None,
        "weight_decay": cfg.optimizer.get("weight_decay", 0.0),
        "seed": cfg.seed,
        "self_distiller": build_self_distiller(cfg, model),
    }
    module: ContrastiveModule | FusionModule
    if isinstance(model, FusionModel):
        objective = build_objective(cfg) if cfg.pairs else None
        module = FusionModule(model=model, objective=objective, **shared)
    else:
        objective = build_objective(cfg)
        with constructor_errors(cfg):
            module = ContrastiveModule(
                model=model, objective=objective, micro_batch_size=cfg.micro_batch_size, **shared
            )
    with constructor_errors(cfg):
        module.make_optimizer()  # refuses here, not on every rank
    return module


def build_self_distiller(cfg: DictConfig, model: EmbeddingModel) -> SelfDistiller | None:
    """What ``cfg.self_distillation`` adds to the model; None where it is null."""
    if cfg.get("self_distillation") is None:  # configurations of earlier versions have none
        return None
    settings = build(cfg, "self_distillation", convert="all")
    with constructor_errors(cfg.self_distillation):
        towers = {str(name): model.tower(name) for name in model.towers}
        return SelfDistiller(settings, towers)


def run_device(cfg: DictConfig) -> torch.device:
    """The kind of device that ``cfg.trainer`` runs on."""
    wanted = str(cfg.trainer.get("accelerator", "auto"))
    gpu = wanted in ("gpu", "cuda") or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if gpu else "cpu")


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
    teacher: Teacher | None = None,
) -> pl.Trainer:
    """The trainer of ``cfg.trainer`` with this run's loggers, callbacks and checkpoint writer.

    Args:
        cfg: the configuration.
        folder: the run's.
        run_config: the configuration as text, for its checkpoints and loggers (`portable_yaml`).
        origin: of the run (`provenance`), for its checkpoints.
        resumed: the checkpoint that the run resumes from.
        teacher: whose embeddings the frozen towers' cache keeps as well.
    """
    callbacks = _callbacks(cfg, folder, run_config, origin, resumed, teacher)
    logger = build(cfg, "logger") if cfg.logger else False
    if isinstance(logger, dict | DictConfig):
        logger = [item for item in logger.values() if item is not None]
    for item in logger if isinstance(logger, list) else []:
        if isinstance(item, WandbLogger):
            _prepare_wandb(item, cfg, run_config, folder, resumed)
    validates = any((cfg.data.get("val_sources") or {}).values())
    given: dict[str, Any] = {} if validates else {"limit_val_batches": 0}  # else Lightning warns
    if cfg.trainer.get("profiler") is None:
        given["profiler"] = NoProfiler()
    trainer = build(
        cfg,
        "trainer",
        **given,
        callbacks=callbacks,
        logger=logger,
        plugins=[checkpoint_plugin.AtomicCheckpointIO()],
        default_root_dir=str(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    assert isinstance(trainer, pl.Trainer)
    return trainer


def _callbacks(
    cfg: DictConfig,
    folder: Path,
    run_config: str,
    origin: dict[str, Any] | None,
    resumed: Resumed | None,
    teacher: Teacher | None,
) -> list[pl.Callback]:
    """Those of ``cfg.callbacks``, and those that every run has, in the order that they run in."""
    callbacks: list[pl.Callback] = [RandomState(), StepAxis()]
    if cfg.optimizer.get("_target_") == SCHEDULE_FREE:
        callbacks.append(ScheduleFreeWeights())
    if resumed is not None and resumed.changed:
        callbacks.append(AllowedChanges(resumed.changed))
    if cfg.model.get("compile"):
        callbacks.append(CompileReport())
    # Callbacks that save follow those that change state, and those that end the run come last.
    for name in sorted(
        cfg.callbacks,
        key=lambda name: CALLBACKS_RUN_LAST.index(name) if name in CALLBACKS_RUN_LAST else -1,
    ):
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
            callbacks.append(FrozenCache(**cfg.cache_frozen, transforms=kept, teacher=teacher))
    return callbacks


def _prepare_wandb(
    logger: WandbLogger, cfg: DictConfig, run_config: str, folder: Path, resumed: Resumed | None
) -> None:
    content = OmegaConf.to_container(OmegaConf.create(run_config))
    assert isinstance(content, dict)
    logger.describe({str(key): value for key, value in content.items()})
    logger.rename(OmegaConf.select(OmegaConf.create(content), "logger.wandb.name"))
    if resumed is not None:
        run_id = resumed.loggers.get("wandb", {}).get("id")
        logger.resume(run_id, resumed.step, resumed.path.parents[1] / NOTE)
    elif cfg.resume == "auto":  # killed before its first checkpoint
        logger.resume(None, -1, folder / NOTE)


def provenance(cfg: DictConfig, data: MultimodalDataModule) -> dict[str, Any]:
    """Provenance of a run: the code's version, hashes of the manifests and the tokenizers."""
    sources = cfg.data.sources
    manifests = {
        str(name): manifest_hash(source.manifest)
        for name, source in sources.items()
        if source is not None and source.get("manifest")
    }
    tokenizers = fingerprints(tokenizers_in(data.transforms))
    return {"code": code_version(), "manifests": manifests, "tokenizers": tokenizers}
