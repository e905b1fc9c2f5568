"""A signal on any rank stops the run on all of them: after the step, with one checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from multimodal.core.process.parent import kill_workers
from multimodal.training.callbacks.checkpoint import Checkpoint
from multimodal.training.callbacks.stopping.rank_monitor import RankMonitor
from multimodal.training.callbacks.stopping.signals import SignalListener, exit_code
from multimodal.training.strategies.heartbeat import Heartbeat

_KEY = "multimodal/stop"


class StoppedBySignalError(SystemExit):
    """The run was asked to stop, and has saved its state; carries the process's exit code."""


class StopOnSignal(pl.Callback):
    """Ends the run when SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C reaches any of its ranks.

    All ranks finish the optimizer step under way, save one checkpoint and exit with 143 (130 after
    Ctrl-C). A validation is aborted; the resumed run begins with it. A second signal ends the
    process at once. After SIGUSR1 or SIGUSR2 inside a SLURM job, the job is queued again where
    ``requeue`` is set (`sbatch --signal=USR1@120 --requeue`; the jobs of ``launcher=slurm`` get
    SIGUSR2 before their time is up): the same command then resumes with ``resume=auto``.

    The ranks agree after every optimizer step by one number over gloo, which no device waits for.
    A validation must not communicate between its first and its last batch.

    Args:
        grace_s: seconds from the signal to a forced end of the process, without a checkpoint; null
            for no limit.
        requeue: whether to call `scontrol requeue` after SIGUSR1 or SIGUSR2 in a SLURM job.
    """

    def __init__(self, grace_s: float | None = 120.0, requeue: bool = True) -> None:
        if grace_s is not None and grace_s <= 0:
            raise ValueError(f"callbacks.stop.grace_s={grace_s} must be above 0, or null")
        self.grace_s = grace_s
        self.requeue = requeue
        self._signals: SignalListener | None = None
        self._ranks = RankMonitor()
        self._heartbeat: Heartbeat | None = None
        self._group: Any = None
        self._seen_step = -1
        self._agreed_in_validation = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Takes over the signals before any worker is started."""
        if self._signals is None:
            self._signals = SignalListener(self.grace_s, self._kill)
        self._signals.start()
        self._ranks.start(trainer)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            timeout = getattr(trainer.strategy, "_timeout", None) or timedelta(minutes=30)
            self._group = dist.new_group(backend="gloo", timeout=timeout)
            if self._heartbeat is None:
                self._heartbeat = self._listen(timeout.total_seconds())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replaces Lightning's handlers, which would wait for other ranks."""
        assert self._signals is not None
        self._signals.start()
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any
    ) -> None:
        """Stops if any rank was asked to; at optimizer steps, which are the same on all ranks."""
        if trainer.global_step == self._seen_step:  # within an accumulation
            return
        self._seen_step = trainer.global_step
        if number := self._reduce_signal():
            pl_module.on_train_batch_end(*arguments)  # its turn would come next: it logs the step
            self._stop(trainer, number)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """No decision yet in this validation."""
        self._agreed_in_validation = False

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any
    ) -> None:
        """Leaves a validation between two of its batches; ranks may have different numbers."""
        if self._agreed_in_validation or trainer.sanity_checking or not _at_a_step(trainer):
            return
        if self._signal_pending():
            self._agreed_in_validation = True
            if number := self._reduce_signal():
                self._stop(trainer, number)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Meets the ranks that have left before the end, ahead of the module's own collectives."""
        if self._agreed_in_validation or trainer.sanity_checking or not _at_a_step(trainer):
            return
        if number := self._reduce_signal():
            self._stop(trainer, number)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """After an error on this rank, terminates the ranks that it has started."""
        if isinstance(exception, StoppedBySignalError):
            return  # a second signal, and the deadline, still count
        if self._heartbeat is not None and (silent := self._heartbeat.silent()):
            print(f"{silent} is silent: stopped, or on a machine that hangs", file=sys.stderr)
            self._ranks.kill()
        self._ranks.shutdown(timeout_s=10.0)
        self._give_back()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restores the previous handlers."""
        self._give_back()

    def _give_back(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        if self._signals is not None:
            self._signals.stop()
            self._signals = None

    def _listen(self, timeout_s: float) -> Heartbeat:
        watch = self._signals
        assert watch is not None

        def leave(status: int | None) -> None:
            self._kill()
            os._exit(exit_code(watch.received) if status is None else status)

        heartbeat = Heartbeat(
            dist.distributed_c10d._get_default_store(),
            dist.get_rank(),
            dist.get_world_size(),
            timeout_s,
            lambda: watch.received,
            leave,
        )
        heartbeat.start()
        return heartbeat

    def _kill(self) -> None:
        self._ranks.kill()
        kill_workers()

    def _signal_pending(self) -> bool:
        """Whether a signal has come, here or, by the store of the process group, to another."""
        assert self._signals is not None
        if self._group is None:
            return bool(self._signals.received)
        store = dist.distributed_c10d._get_default_store()
        if self._signals.received:
            store.set(_KEY, "1")
            return True
        return bool(store.check([_KEY]))

    def _reduce_signal(self) -> int:
        """The signal to stop for on all ranks; 0 to continue. Every rank has to call."""
        assert self._signals is not None
        number = self._signals.received
        if self._group is not None:
            # SIGTERM outranks the others where ranks were sent different ones.
            flag = torch.tensor([number])
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
            number = int(flag)
        return number

    def _stop(self, trainer: pl.Trainer, number: int) -> NoReturn:
        name = signal.Signals(number).name
        if trainer.is_global_zero:
            print(f"{name}: stopping after step {trainer.global_step}", file=sys.stderr)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoint):
                callback.save_or_raise(trainer)
        code = exit_code(number)
        if number in (signal.SIGUSR1, signal.SIGUSR2) and self.requeue and trainer.is_global_zero:
            requeue_slurm_job()
        self._ranks.release()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._group is not None:
            dist.barrier(group=self._group)
        raise StoppedBySignalError(code)


def _at_a_step(trainer: pl.Trainer) -> bool:
    """Whether the validation under way follows an optimizer step, where a run may stop."""
    return trainer.state.fn == "fit" and not trainer.fit_loop.epoch_loop._should_accumulate()


def requeue_slurm_job() -> bool:
    """Asks SLURM to queue the present job again; False if this is not a SLURM job."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array and task else job
    try:
        done = subprocess.run(
            ["scontrol", "requeue", name], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"WARNING: job {name} is not queued again: {error}", file=sys.stderr)
        return False
    if done.returncode != 0:
        print(f"WARNING: job {name} is not queued again: {done.stderr.strip()}", file=sys.stderr)
        return False
    print(f"SLURM job {name} is queued again", file=sys.stderr)
    return True
