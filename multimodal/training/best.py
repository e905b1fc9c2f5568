"""Which weights the evaluation at a run's end is of: those of the best checkpoint, or the last."""

from __future__ import annotations

import sys

import pytorch_lightning as pl

from multimodal.core.distributed import all_gather_object
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.inference.checkpoint.weights import weights_of
from multimodal.training.callbacks.checkpoint import Checkpoint
from multimodal.training.modules.base import TrainingModule


def use_best(trainer: pl.Trainer, module: TrainingModule, evaluated: bool = True) -> str:
    """Puts the weights of the best checkpoint into a module that has been trained.

    The last weights stay where no checkpoint has a score, where the best is the last, where
    `callbacks.checkpoint.evaluate` is ``last``, and with a warning where it cannot be read. Every
    rank has to call it. Says on standard output which checkpoint was the best.

    Args:
        trainer: of the run, whose training has ended.
        module: that it trained.
        evaluated: whether anything is evaluated; else no weights are read.

    Returns:
        Which weights the module holds now, for the report.
    """
    last = f"last step, {trainer.global_step:,}"
    callback = next(
        (c for c in trainer.callbacks if isinstance(c, Checkpoint)),  # type: ignore[attr-defined]
        None,
    )
    best_step = None if callback is None else callback.best_there()
    best = all_gather_object(best_step)[0]  # the first rank's, which alone removes checkpoints
    if callback is None or best is None:
        return last
    step, score, path = best
    _say(trainer, f"best checkpoint: {path} ({callback.monitor} {score:.4f} at step {step})")
    if step == trainer.global_step:
        return f"{last}, best by {callback.monitor}"
    if callback.evaluate == "last" or not evaluated:
        return last
    state, failure = {}, ""
    try:
        state = weights_of(store.read(path), path)
    except CheckpointError as error:
        failure = str(error)
    if failures := [each for each in all_gather_object(failure) if each]:
        if trainer.is_global_zero:
            print(f"WARNING: {failures[0]}; the last weights are evaluated", file=sys.stderr)
        return last
    module.to(trainer.strategy.root_device)
    module.load_weights(state)
    _say(
        trainer,
        f"it is evaluated, not the last step, {trainer.global_step} "
        "(callbacks.checkpoint.evaluate=last: that one)",
    )
    return f"step {step:,} of {trainer.global_step:,}, best by {callback.monitor}"


def _say(trainer: pl.Trainer, line: str) -> None:
    if trainer.is_global_zero:
        print(line)
