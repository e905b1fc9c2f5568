"""When checkpoints are written, what they contain, and which are kept."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any, Literal, cast

import pytorch_lightning as pl

from multimodal.core.distributed import all_gather_object
from multimodal.core.files import unwritable, write_text
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.inference.checkpoint.locate import SCORES
from multimodal.training.callbacks.monitored import not_logged
from multimodal.training.checkpoint_plugin import AtomicCheckpointIO
from multimodal.training.loggers.csv import CSVLogger
from multimodal.training.loggers.wandb import wandb_state
from multimodal.training.modules.base import SCORE, TrainingModule


class Checkpoint(pl.Callback):
    """Saves `step=NNNNNNNN.ckpt` at optimizer steps and at the end; keeps the best and the last.

    A checkpoint is written right after its optimizer step, before a validation that is due then; a
    run that is resumed from it begins with that validation. Where ``keep_best`` is set, every
    validated step has a checkpoint, so that the best one is there when its score is known.

    A failed periodic save (full disk) is reported and training continues; a failed last one is an
    error.

    With ``asynchronous`` a periodic one is copied to the host, and a thread writes the copy while
    training goes on; the older ones stay until it is in its place. The next one, the end of a
    validation, a signal, an error and the end of the run wait for it. Under ``trainer=fsdp`` all
    ranks write, and training waits.

    Args:
        folder: of this run's checkpoints.
        every_n_train_steps: optimizer steps between two checkpoints; null saves at the end only.
        keep_last: how many to keep, by step.
        keep_best: how many more to keep, by the metric ``monitor``, where there is validation.
        monitor: a logged metric of the validation, as `val/SOURCE/A_to_B_r@1`; `val/score` is the
            mean of all.
        mode: ``max`` if a higher metric is better, ``min`` if a lower one is.
        run_config: the resolved configuration as YAML text; goes into every checkpoint.
        origin: provenance of the run (code, data) as plain values; goes into every checkpoint.
        asynchronous: whether a thread writes the periodic ones; it needs host memory for a copy.
        evaluate: whose weights the evaluation at the run's end takes: ``best``, where a checkpoint
            has a score, or ``last``.
    """

    def __init__(
        self,
        folder: str,
        every_n_train_steps: int | None,
        keep_last: int,
        run_config: str,
        keep_best: int = 0,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
        origin: dict[str, Any] | None = None,
        asynchronous: bool = False,
        evaluate: Literal["best", "last"] = "best",
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"callbacks.checkpoint.keep_last={keep_last} must be at least 1")
        if keep_best < 0:
            raise ValueError(f"callbacks.checkpoint.keep_best={keep_best} must be at least 0")
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(
                f"callbacks.checkpoint.every_n_train_steps={every_n_train_steps} must be at least "
                "1, or null for a checkpoint at the end only"
            )
        if evaluate not in ("best", "last"):
            raise ValueError(f"callbacks.checkpoint.evaluate={evaluate}: expected best or last")
        if keep_best and monitor is None:
            raise ValueError(
                f"callbacks.checkpoint.keep_best={keep_best} needs callbacks.checkpoint.monitor: "
                "the metric that ranks checkpoints"
            )
        self.folder = Path(folder)
        self.every_n_train_steps = every_n_train_steps
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.monitor = monitor
        self.mode = mode
        self.run_config = run_config
        self.origin = origin or {}
        self.asynchronous = asynchronous
        self.evaluate = evaluate
        self._unsettled = False  # whether what was given to a thread is not known to be written
        self.scores: dict[int, float] = {}
        self._saved_step = self._seen_step = 0
        self._validation_due = False
        self._loops: dict[str, Any] | None = None  # from before the current validation

    def state_dict(self) -> dict[str, Any]:
        """The scores so far, and whether the validation of this step is still to come."""
        return {"scores": dict(self.scores), "validation_due": self._validation_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` saved."""
        self.scores = {int(step): float(score) for step, score in state_dict["scores"].items()}
        self._validation_due = state_dict["validation_due"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts at the step that the run was resumed from, in the log too."""
        self._saved_step = self._seen_step = trainer.global_step
        if trainer.is_global_zero:
            store.remove_leftovers(self.folder)
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.rewind(trainer.global_step)
        if self._validation_due:
            _validate(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the constants of a run; during a validation, the state of the loops before it."""
        checkpoint["config"] = self.run_config
        checkpoint["origin"] = self.origin
        checkpoint["loggers"] = wandb_state(trainer.loggers)
        if trainer.validating and self._loops is not None:
            checkpoint["loops"] = self._loops

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any
    ) -> None:
        """Saves when an optimizer step has just been taken whose number is a multiple."""
        if self._unsettled and not _plugin(trainer).is_writing():
            self._settle(trainer)
        step, every = trainer.global_step, self.every_n_train_steps
        if step == self._seen_step:  # within an accumulation
            return
        self._seen_step = step
        epoch_loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher
        self._validation_due = fetcher is not None and epoch_loop._should_check_val_fx(fetcher)
        self._loops = None
        if self._validation_due:
            self._loops = copy.deepcopy(trainer._checkpoint_connector._get_loops_state_dict())
        if (every and step % every == 0) or (self.keep_best and self._validation_due):
            if isinstance(pl_module, TrainingModule):
                pl_module.log_if_due()  # or a run killed now would never log this step's row
            self.save(trainer, in_background=self.asynchronous)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """What was being written when the run failed is written."""
        self._settle(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the score of the step that was validated, and keeps the best."""
        if trainer.sanity_checking:
            return
        self._settle(trainer)  # or the best one may not be there yet
        self._validation_due, self._loops = False, None
        if not self.keep_best:
            return
        value = trainer.callback_metrics.get(cast("str", self.monitor))
        if value is None and self.monitor == SCORE:  # nothing in it that has a score
            return
        if value is None:
            raise not_logged("callbacks.checkpoint.monitor", self.monitor, trainer)
        self.scores[trainer.global_step] = float(value)
        self._remove_old(trainer)
        if trainer.is_global_zero:
            self._write_scores()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the final state, unless the last step did.

        Raises:
            CheckpointError: if it cannot be saved.
        """
        self.save_or_raise(trainer)

    def save_or_raise(self, trainer: pl.Trainer) -> None:
        """As `save`, where the run is about to end: nothing if this step is saved already.

        Raises:
            CheckpointError: on all ranks, if it cannot be saved.
        """
        self._settle(trainer)
        if self.asynchronous and any(all_gather_object(_plugin(trainer).failure is not None)):
            self._saved_step = -1  # whichever it was
        if trainer.global_step != self._saved_step and not self.save(trainer):
            raise CheckpointError(f"the last checkpoint (step {trainer.global_step}) is not saved")

    def save(self, trainer: pl.Trainer, in_background: bool = False) -> bool:
        """Writes the checkpoint of the present step (all ranks call it) and removes old ones.

        Args:
            trainer: of the run.
            in_background: returns when the content is copied; whether it could be written is known
                when the next is saved, and said then.

        Returns:
            Whether it was written, or is being; if not, the reason is on stderr.
        """
        self._settle(trainer)
        path = self.folder / f"step={trainer.global_step:08d}.ckpt"
        plugin = _plugin(trainer)
        plugin.in_background = in_background
        trainer.save_checkpoint(path, weights_only=False)
        plugin.in_background = False
        if in_background:
            self._saved_step, self._unsettled = trainer.global_step, True
            return True
        failed = any(all_gather_object(plugin.failure is not None))
        if failed:
            if trainer.is_global_zero:
                print("WARNING: continuing without this checkpoint", file=sys.stderr)
            return False
        self._saved_step = trainer.global_step
        self._remove_old(trainer)
        return True

    def _settle(self, trainer: pl.Trainer) -> None:
        """Waits for what a thread writes; then the old ones may go. No collective."""
        plugin = _plugin(trainer)
        plugin.wait()
        unsettled, self._unsettled = self._unsettled, False
        if not unsettled or not trainer.is_global_zero:
            return
        if plugin.failure is not None:
            print("WARNING: continuing without this checkpoint", file=sys.stderr)
        else:
            self._remove_old(trainer)

    def _remove_old(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        there = store.steps(self.folder)
        kept = set(list(there)[-self.keep_last :]) | set(self.best(there))
        for step, path in there.items():
            if step not in kept:
                checkpoint_file.remove(path)

    def _write_scores(self) -> None:
        """Beside the checkpoints: a last validation follows the last checkpoint."""
        there = store.steps(self.folder)
        scores = {
            s: score for s, score in self.scores.items() if s in there and math.isfinite(score)
        }
        content = {"monitor": self.monitor, "mode": self.mode, "scores": scores}
        try:
            write_text(self.folder / SCORES, json.dumps(content, indent=2) + "\n")
        except OSError as error:  # as of a periodic save
            print(f"WARNING: {unwritable(self.folder / SCORES, error, '')}", file=sys.stderr)

    def best_there(self) -> tuple[int, float, Path] | None:
        """Step, score and path of the best checkpoint; None where none has a score."""
        there = store.steps(self.folder)
        for step in self.best(there)[:1]:
            return step, self.scores[step], there[step]
        return None

    def best(self, there: dict[int, Path]) -> list[int]:
        """Those steps of ``there`` with the best scores, best first; ties go to the later one."""
        sign = 1.0 if self.mode == "max" else -1.0
        scored = [step for step in there if math.isfinite(self.scores.get(step, math.nan))]
        scored.sort(key=lambda step: (sign * self.scores[step], step), reverse=True)
        return scored[: self.keep_best]


def _plugin(trainer: pl.Trainer) -> AtomicCheckpointIO:
    """The run's writer; one that has nothing to do where another was given."""
    plugin = trainer.strategy.checkpoint_io
    return plugin if isinstance(plugin, AtomicCheckpointIO) else AtomicCheckpointIO()


def _validate(trainer: pl.Trainer) -> None:
    """The validation that the run was cut off before, as the training loop would have run it."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
