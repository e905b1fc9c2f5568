"""The main job: check, seed, build, fit, evaluate."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from multimodal.config import check, config_dir, drop_removed
from multimodal.config.instantiating import constructor_errors
from multimodal.config.portable import portable_yaml
from multimodal.core.errors import UserError
from multimodal.core.process.quiet import quieten_libraries
from multimodal.evaluation.results import Results
from multimodal.evaluation.run import evaluate_metrics, evaluate_run
from multimodal.evaluation.trained_pairs import trained_pairs
from multimodal.inference.checkpoint.input_check import check_inputs
from multimodal.inference.checkpoint.tokenizer_check import check_vocab_size, tokenizers_in
from multimodal.inference.checkpoint.weights import pair_temperatures
from multimodal.inference.pretrained.towers import fetch_all, fill_towers
from multimodal.inference.pretrained.wheels import FetchError
from multimodal.training.anchor import load_anchor, resolve_anchor
from multimodal.training.best import use_best
from multimodal.training.build import build_data, build_module, build_trainer, provenance
from multimodal.training.callbacks.optimizer_overrides import refuse_other_parameters
from multimodal.training.callbacks.periodic_evaluation import PeriodicEvaluation
from multimodal.training.failures import LostPartError, explain
from multimodal.training.loggers.wandb import finish, log_report
from multimodal.training.modules.contrastive import ContrastiveModule
from multimodal.training.modules.fusion import FusionModule
from multimodal.training.resume import resume
from multimodal.training.teacher import load_teacher


def train(cfg: DictConfig, checked: bool = False) -> Results | None:
    """Trains the experiment that ``cfg`` describes and evaluates it on held-out data.

    Args:
        cfg: the configuration.
        checked: the caller has called `check`.

    Returns:
        The results, on every rank; None where nothing is evaluated.
    """
    drop_removed(cfg)
    if not checked:
        check(cfg)
    quieten_libraries()
    folder = run_folder()
    fetch_pretrained(cfg)
    anchor = resolve_anchor(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision(cfg.get("matmul_precision", "highest"))

    module, data = build_module(cfg), build_data(cfg)
    for note in fill_towers(module.model, cfg):
        print(note, file=sys.stderr)
    check_vocab_size(module.model, tokenizers_in(data.transforms))
    check_inputs(module.model, data.transforms)
    origin = provenance(cfg, data)
    teacher = None
    if anchor is not None:
        teacher = load_teacher(cfg, anchor, data.transforms)
        anchor_cfg = load_anchor(module.model, cfg, anchor, origin["tokenizers"])
        pairs = [sorted(ends) for ends in trained_pairs(anchor_cfg)]
        OmegaConf.update(cfg, "anchor.pairs", pairs, force_add=True)
    run_config = portable_yaml(cfg)
    resumed = resume(cfg, folder, run_config, origin)
    trainer = build_trainer(cfg, folder, run_config, origin, resumed, teacher)
    refuse_other_parameters(trainer, module, resumed)
    with constructor_errors(cfg.data):
        data.check_batches(trainer.world_size)
    if cfg.evaluation is not None and cfg.evaluation.get("every"):
        trainer.callbacks.append(build_evaluation_callback(cfg))  # type: ignore[attr-defined]
    path = None if resumed is None else str(resumed.path)
    finished = False
    try:
        trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
        weights = use_best(trainer, module, cfg.evaluation is not None)
        results = run_final_evaluation(cfg, module, trainer, folder, weights)
        finished = True
    except RuntimeError as error:
        if not isinstance(error, UserError) and (reason := explain(error)):
            raise LostPartError(reason) from error
        raise
    finally:
        finish(trainer.loggers, failed=not finished)
    return results


def leave_a_core() -> None:
    """Has torch compute on all cores but one, which reads the data.

    Where as many threads compute as there are cores, they wait for each other whenever the process
    that reads has its turn. The number does not follow ``data.num_workers``, on which no result may
    depend. ``OMP_NUM_THREADS``, and a launcher of several processes, decide themselves.
    """
    if "OMP_NUM_THREADS" in os.environ or int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (cores or 1) - 1)))


def fetch_pretrained(cfg: DictConfig) -> None:
    """Fetches the weights that the run's towers begin from, before anything slow.

    Raises:
        FetchError: if they cannot be had; names the experiment that needs none, where there is one.
    """
    try:
        fetch_all(cfg)
    except FetchError as error:
        scratch = f"{cfg.name}_scratch"
        if not (config_dir() / "experiment" / f"{scratch}.yaml").is_file():
            raise
        raise FetchError(
            f"{error}\nWithout it: +experiment={scratch} begins from random weights and fetches "
            "nothing"
        ) from error


def run_final_evaluation(
    cfg: DictConfig, module: ContrastiveModule | FusionModule, trainer: pl.Trainer, folder: Path,
    weights: str,
) -> Results | None:  # fmt: skip
    """Runs the evaluation at the end of a run; None if nothing is evaluated.

    ``weights`` says for the report which ones the module holds.
    """
    if cfg.evaluation is None:
        return None
    model = module.model.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
    trained, temperatures = trained_pairs(cfg), pair_temperatures(cfg, module.state_dict())
    with module.unsharded():
        results = evaluate_run(model, cfg, folder, trained, temperatures, weights)
    log_report(trainer.loggers, folder / "report.html", results.flat())
    return results


def build_evaluation_callback(cfg: DictConfig) -> PeriodicEvaluation:
    """A callback that evaluates every ``evaluation.every`` steps or epochs."""

    def figures(module: pl.LightningModule) -> dict[str, float]:
        assert isinstance(module, ContrastiveModule | FusionModule)
        temperatures = pair_temperatures(cfg, module.state_dict())
        with module.unsharded():
            return evaluate_metrics(module.model, cfg, trained_pairs(cfg), temperatures)

    return PeriodicEvaluation(figures, cfg.evaluation.every, cfg.evaluation.get("unit", "steps"))


def run_folder() -> Path:
    """Hydra's output folder of this job; the working directory outside of Hydra."""
    return Path(HydraConfig.get().runtime.output_dir) if HydraConfig.initialized() else Path.cwd()
