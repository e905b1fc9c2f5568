"""Optimizer settings that a resumed run may change."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities import rank_zero_only
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.training.modules.base import TrainingModule
from multimodal.training.optim import names_of_groups
from multimodal.training.resume import TRAINED, Resumed, listed


class AllowedChanges(pl.Callback):
    """Has a resumed run use its own settings where they differ from the checkpoint's.

    A restored optimizer brings along its old settings, its old rate and the parameters that were
    trained; without this, ``resume.allow=[optimizer.lr]`` would change nothing, a longer schedule
    would take its first step at the old one's last rate, and a tower that is trained from here on
    would not fit.

    Args:
        changed: dotted key -> present value.
    """

    def __init__(self, changed: Mapping[str, Any]) -> None:
        self.changed = dict(changed)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Fits the optimizer's state to the parameters that are trained now."""
        assert isinstance(pl_module, TrainingModule)
        if isinstance(trainer.strategy, ModelParallelStrategy):
            return  # has restored its optimizer, of the same parameters (`refuse_other_parameters`)
        fit_state(checkpoint, pl_module.make_optimizer()[0], pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets them, once everything is restored."""
        if not any(key.startswith(("optimizer", "scheduler", "model")) for key in self.changed):
            return
        assert isinstance(pl_module, TrainingModule)
        for optimizer in trainer.optimizers:
            fresh = pl_module.make_optimizer()[0]
            for group, own in zip(optimizer.param_groups, fresh.param_groups, strict=True):
                group |= {k: v for k, v in own.items() if k not in ("params", "lr")}
                if not trainer.lr_scheduler_configs:
                    group["lr"] = own["lr"]
        for config in trainer.lr_scheduler_configs:
            config.scheduler = _caught_up(config.scheduler, pl_module)


def refuse_other_parameters(
    trainer: pl.Trainer, module: TrainingModule, resumed: Resumed | None
) -> None:
    """Refuses to go on with other trained parameters where the optimizer's state is sharded.

    Raises:
        CheckpointError: naming some of them, and the way round.
    """
    if resumed is None or not isinstance(trainer.strategy, ModelParallelStrategy):
        return
    now = {name for group in names_of_groups(module.make_optimizer()[0], module) for name in group}
    then = {name for group in resumed.trained or [] for name in group}
    if resumed.trained is not None and now != then:
        other = listed(sorted(now ^ then))
        raise CheckpointError(
            f"{resumed.path} trained other parameters than this run would ({other}), and "
            "trainer=fsdp resumes with the same ones only: freeze and tune as it did, or take the "
            "first steps by trainer=ddp, and resume from its next checkpoint by trainer=fsdp"
        )


def _caught_up(scheduler: Any, module: TrainingModule) -> Any:
    """The schedule of this run at the step that the restored ``scheduler`` has reached."""
    optimizer, step = scheduler.optimizer, scheduler.last_epoch
    groups = optimizer.param_groups
    if isinstance(scheduler, LambdaLR):
        scheduler.base_lrs = [group["initial_lr"] for group in groups]
        for group, factor in zip(groups, scheduler.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(step)
        scheduler._last_lr = [group["lr"] for group in groups]
        return scheduler
    for group in groups:
        group["lr"] = group["initial_lr"]
    own: Any = module.make_schedule(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no step of the optimizer lies between
        for _ in range(step):
            own.step()
    return own


def fit_state(checkpoint: dict[str, Any], fresh: Optimizer, module: TrainingModule) -> None:
    """Gives every parameter that is trained now its own state in a checkpoint's optimizer.

    One that was not trained begins with fresh state, the state of one that is not trained any more
    is left out.

    Args:
        checkpoint: as read; its optimizer and schedule are changed where parameters differ.
        fresh: this run's optimizer, as made.
        module: this run's.

    Raises:
        CheckpointError: if parameters differ, and the checkpoint does not say which it trained.
    """
    names, states = names_of_groups(fresh, module), checkpoint.get("optimizer_states") or []
    if len(states) != 1 or not states[0].get("param_groups"):
        return
    saved = checkpoint.get(TRAINED)
    if saved is None:
        sizes = [len(group["params"]) for group in states[0]["param_groups"]]
        if sizes != [len(group) for group in names]:
            raise CheckpointError(
                "this run trains other parameters than the checkpoint did, which is too old to say "
                "which; freeze and tune as it did, or begin a new run"
            )
        return
    if saved == names:
        return
    old = {name: number for number, name in enumerate(n for group in saved for n in group)}
    new = [name for group in names for name in group]
    state = states[0]["state"]
    states[0]["state"] = {
        i: state[old[name]] for i, name in enumerate(new) if name in old and old[name] in state
    }
    start, groups = 0, []
    for group, own in zip(fresh.param_groups, names, strict=True):
        settings = {k: v for k, v in group.items() if k != "params"}
        places = list(range(start, start + len(own)))
        groups.append({**settings, "params": places})
        start += len(own)
    states[0]["param_groups"] = groups
    for schedule in checkpoint.get("lr_schedulers") or []:
        for key in {"base_lrs", "_last_lr"} & schedule.keys():
            schedule[key] = [group["initial_lr"] for group in groups]
        if "lr_lambdas" in schedule:
            schedule["lr_lambdas"] = [None] * len(groups)
    _say([name for name in new if name not in old], "are trained from here on, with fresh state")
    _say([name for name in old if name not in new], "are not trained any more")


@rank_zero_only
def _say(names: list[str], what: str) -> None:
    if names:
        print(f"{len(names)} parameters {what} ({listed(names)})", file=sys.stderr)
