"""Evaluates a checkpoint: multimodal evaluate checkpoint=PATH [evaluation=NAME]."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from multimodal.cli.main import run


def evaluate(cfg: DictConfig) -> None:
    """Evaluates ``cfg.checkpoint`` on the sets of its run, or on those that ``cfg`` chooses."""
    from hydra.core.hydra_config import HydraConfig

    from multimodal.config import ConfigError, ConfigProblem, check, drop_removed, for_use, named_by
    from multimodal.config.schema import Stored
    from multimodal.core.distributed import torchrun_process_group
    from multimodal.evaluation.run import evaluate_run
    from multimodal.evaluation.trained_pairs import trained_pairs
    from multimodal.inference.checkpoint import store
    from multimodal.inference.checkpoint.load import config_of, load_model
    from multimodal.inference.checkpoint.locate import checkpoint_at
    from multimodal.inference.checkpoint.weights import pair_temperatures, weights_of
    from multimodal.inference.device import device_of

    path = checkpoint_at(cfg.checkpoint)
    checkpoint = store.read(path)
    named = named_by(cfg)
    run_cfg = for_use(config_of(checkpoint, path, cfg.allowed_packages, named))
    for group in ("evaluation", "data"):
        if cfg[group] is not None:
            run_cfg[group] = cfg[group]
    if run_cfg.evaluation is None:
        raise ConfigError(
            [ConfigProblem("evaluation", "the run has no sets; choose evaluation=NAME")]
        )
    drop_removed(run_cfg)
    check(run_cfg, Stored)  # before anything that the checkpoint names is built
    transforms = run_cfg.data.transforms
    model, _ = load_model(path, cfg.allowed_packages, cfg.weights, transforms, named)

    folder = Path(HydraConfig.get().runtime.output_dir)
    temperatures = pair_temperatures(run_cfg, weights_of(checkpoint, path, cfg.weights))
    with torchrun_process_group() as place:
        device = device_of(cfg.device, place)
        pairs, model = trained_pairs(run_cfg), model.to(device)
        evaluate_run(model, run_cfg, folder, pairs, temperatures, path.name)


def command() -> None:
    """`multimodal evaluate` and `python scripts/evaluate.py`."""
    run("evaluate", evaluate, paths=("checkpoint",))
