"""The base of the training modules: the optimizer, and means of step metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from multimodal.core.batch import Batch
from multimodal.core.distributed import (
    all_gather_object,
    all_reduce_sum,
    is_split,
    rank,
    world_size,
)
from multimodal.core.hashing import stable_hash
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.training.modules.self_distilled import SelfDistiller
from multimodal.training.optim import (
    clip_sharded_grads,
    clip_towers,
    fused,
    names_of_groups,
    own_norms,
    parameter_groups,
    scale_learning_rates,
    was_applied,
)
from multimodal.training.resume import TRAINED, refuse_other_weights

SCORE = "val/score"  # of a validation; higher is better


class TrainingModule(pl.LightningModule):
    """Base of the training modules.

    Args:
        optimizer: called with parameter groups, returns the optimizer.
        scheduler: called with the optimizer, returns a schedule stepped once per optimizer step;
            None for a constant learning rate.
        weight_decay: of the parameters that decay.
        self_distiller: self-distillation of its towers, beside what else it trains; None for none.
    """

    model: EmbeddingModel

    def __init__(
        self,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        weight_decay: float,
        self_distiller: SelfDistiller | None = None,
    ) -> None:
        super().__init__()
        self.self_distiller = self_distiller
        self._applied = False
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._weight_decay = weight_decay
        self._sharded = False
        self._own_norms = False  # whether a tower has one; asked once, not in every step
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._logged_step = 0
        self._rate = 0.0
        self.gradient_norm: Tensor | None = None  # of the step, where a callback has measured it
        self.host_metrics: dict[str, float] = {}  # by callbacks, logged with the step's own

    def __setattr__(self, name: str, value: Any) -> None:
        """As torch's, which is slow, but for the current hook, which Lightning notes at each."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def configure_model(self) -> None:
        """Applies the run's precision; with ``trainer=fsdp`` shards the weights over ranks."""
        # Lightning does so after it has restored a checkpoint: float64 would come back as float32.
        self.trainer.precision_plugin.convert_module(self)
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and not self._sharded:
            from multimodal.training.strategies import fsdp  # and sympy with it: only where used

            fsdp.shard(self.get_submodule("model"), strategy.device_mesh["data_parallel"])
            self._sharded = True

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Fills the module from a whole state dict; where weights are split, its rank's shard."""
        if self._sharded:
            from multimodal.training.strategies import fsdp

            state = fsdp.sharded_like(state, self)
        self.load_state_dict(state)

    def unsharded(self) -> AbstractContextManager[None]:
        """Within, every rank has all weights; nothing happens where none is split."""
        if not self._sharded:
            return nullcontext()
        from multimodal.training.strategies import fsdp

        return fsdp.unsharded(self)

    def on_after_backward(self) -> None:
        """Averages the gradients of replicated parameters; the strategy does the sharded ones."""
        if self._sharded:
            from multimodal.training.strategies import fsdp

            fsdp.all_reduce_replicated_grads(self, uneven=self.may_differ_by_rank)

    def on_validation_start(self) -> None:
        """Ranks have different numbers of validation batches: each needs all weights."""
        if self._sharded:
            from multimodal.training.strategies import fsdp

            fsdp.unshard(self)

    def on_validation_end(self) -> None:
        """Frees all but this rank's shard."""
        if self._sharded:
            from multimodal.training.strategies import fsdp

            fsdp.reshard(self)

    @property
    def may_differ_by_rank(self) -> bool:
        """Whether a step may use a parameter on some ranks and not on others."""
        return False

    def may_leave_unused(self, sources: Mapping[str, Collection[str]]) -> bool:
        """Whether a step on one of ``sources`` (name -> modalities) may leave a trained parameter
        without a gradient; True where that is not known.
        """
        return True

    def setup(self, stage: str) -> None:
        """Starts the moving averages of towers.

        Not earlier: until here, the towers' weights may still be replaced by trained ones.
        """
        if self.self_distiller is not None:
            self.self_distiller.start(self.towers)

    @property
    def towers(self) -> dict[str, Tower]:
        """The model's towers by modality; a shared one stands under each of its names."""
        return {name: cast("Tower", tower) for name, tower in self.model.towers.items()}

    def self_distilled(
        self, batch: Batch, seed: int, micro_batch_size: int | None = None
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The weighted loss of self-distillation, and its parts; nothing where there is none."""
        if self.self_distiller is None:
            return 0.0, {}
        key = stable_hash(seed, batch.step, "self_distillation")
        distiller = self.self_distiller
        return distiller.loss(self.towers, batch, key, micro_batch_size)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """An optimizer step, and then what follows it."""
        self._applied = False
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.after_step(self._applied)

    @property
    def asks_if_applied(self) -> bool:
        """Whether something follows only a step that was applied: the host has to know then."""
        return self.self_distiller is not None

    def after_step(self, applied: bool) -> None:
        """Moves averages of towers on, if the step was applied: not left out by a scaler."""
        if self.self_distiller is not None:
            self.self_distiller.update(self.towers, applied)

    def _note_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._applied = was_applied(optimizer)

    def configure_optimizers(self) -> Any:
        """The optimizer over the trainable parameters, and its schedule by optimizer step."""
        optimizer, schedule = self.make_optimizer()
        self._own_norms = bool(own_norms(self))
        if self.asks_if_applied:
            optimizer.register_step_post_hook(self._note_step)
        if schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def make_optimizer(self) -> tuple[Optimizer, LRScheduler | None]:
        """A new optimizer and its schedule; made before the run as well, to see if they can be."""
        split = bool(getattr(getattr(self._make_optimizer, "func", None), "splits_hidden", False))
        groups = parameter_groups(self, self._weight_decay, split_hidden=split)
        forbidden = self._scales_gradients or self._sharded
        optimizer = fused(self._make_optimizer, forbidden)(groups)
        scale_learning_rates(optimizer)
        schedule = None if self._make_scheduler is None else self._make_scheduler(optimizer)
        return optimizer, schedule

    @property
    def _scales_gradients(self) -> bool:
        plugin = None if self._trainer is None else self._trainer.precision_plugin
        return getattr(plugin, "scaler", None) is not None

    def make_schedule(self, optimizer: Optimizer) -> LRScheduler:
        """The run's schedule from its beginning; only where it has one."""
        assert self._make_scheduler is not None
        return self._make_scheduler(optimizer)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Notes the rate of this step: once it is taken, the schedule has set the next one's."""
        self._rate = float(optimizer.param_groups[0]["lr"])

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """The run's clipping, except for towers with their own norm."""
        norm, self.gradient_norm = self.gradient_norm, None
        having = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        rest = clip_towers(self) if self._own_norms else having
        gradients = [p.grad for p in rest if p.grad is not None]
        if gradient_clip_val and any(is_split(gradient) for gradient in gradients):
            clip_sharded_grads(gradients, gradient_clip_val, gradient_clip_algorithm)
        elif len(rest) == len(having):
            if norm is not None and gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
                torch.nn.utils.clip_grads_with_norm_(rest, gradient_clip_val, norm)
                return
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(rest, gradient_clip_val)

    def accumulate(self, metrics: Mapping[str, Tensor]) -> None:
        """Adds a step's scalars to the logged means; the same names on all ranks."""
        # On the device and without a synchronisation: floats are read once per logged step.
        for name, value in metrics.items():
            before = self._sums.get(name)  # on the CPU if a checkpoint provided it
            self._sums[name] = value if before is None else before.to(value.device) + value
            self._counts[name] += 1

    def on_train_start(self) -> None:
        """Nothing is due before an optimizer step of this run."""
        self._logged_step = self.trainer.global_step

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs the means since the last logged step, every ``trainer.log_every_n_steps``."""
        self.log_if_due()

    def log_if_due(self) -> None:
        """Logs what this step completes; nothing the second time, so it may be called early."""
        step = self.trainer.global_step
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        # Once a step: the next batches of an accumulation count for the step that they lead to.
        if self._counts and every and step % every == 0 and step != self._logged_step:
            self._logged_step = step
            means = self.interval_means()
            means.update(self.host_metrics)
            means["train/lr"] = self._rate
            for logger in self.trainer.loggers:
                logger.log_metrics(means, step=step)
            self.trainer.callback_metrics.update(
                {name: torch.tensor(value) for name, value in means.items()}
            )

    def log_score(self, scores: Sequence[float]) -> None:
        """Logs `val/score`, the mean of ``scores``: the best checkpoint is best by it."""
        if scores:
            self.log(SCORE, sum(float(score) for score in scores) / len(scores))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds every rank's sums of the metrics not yet logged; every rank has to call it."""
        own = {name: value.detach().cpu() for name, value in self._sums.items()}
        checkpoint["unlogged"] = {"counts": dict(self._counts), "sums": all_gather_object(own)}
        for optimizer in self.trainer.optimizers[:1]:
            checkpoint[TRAINED] = names_of_groups(optimizer, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores them; at another world size every rank takes their mean over the ranks."""
        refuse_other_weights(checkpoint.get("state_dict"), self)
        saved = checkpoint.get("unlogged", {"counts": {}, "sums": [{}]})
        ranks = saved["sums"]
        if len(ranks) == world_size():
            self._sums = dict(ranks[rank()])
        else:
            self._sums = {n: torch.stack([r[n] for r in ranks]).mean(0) for n in ranks[0]}
        self._counts = defaultdict(int, saved["counts"])

    def interval_means(self) -> dict[str, float]:
        """Means over the steps and ranks since the last call, in sorted order of their names."""
        names = sorted(self._sums)
        means = torch.stack([_at_least_single(self._sums[n]) / self._counts[n] for n in names])
        means = all_reduce_sum(means) / world_size()
        self._sums.clear()
        self._counts.clear()
        return dict(zip(names, means.tolist(), strict=True))


def _at_least_single(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()
