"""The training module of fusion models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from multimodal.core.batch import Batch
from multimodal.core.distributed import all_gather_object, all_reduce_sum, world_size
from multimodal.core.hashing import stable_hash
from multimodal.core.tensor_hashing import uniform
from multimodal.evaluation.uncertainty import ERRORS
from multimodal.models.fusion_model import FusionModel
from multimodal.models.tasks.base import FusedBatch, LossTerm, Task, joined
from multimodal.objectives.objective import ContrastiveObjective
from multimodal.training.modules.base import TrainingModule
from multimodal.training.modules.self_distilled import SelfDistiller
from multimodal.training.modules.single_keys import SingleKeyWarning


class FusionModule(TrainingModule):
    """Trains a ``FusionModel`` on its tasks, and on contrastive pairs where there are any.

    Args:
        model: towers, fusion and tasks.
        objective: the pairs (as in ALBEF and CoCa), beside the tasks; None for none.
        optimizer: called with parameter groups, returns the optimizer.
        scheduler: called with the optimizer, returns a schedule; None for a constant rate.
        weight_decay: of the parameters that decay.
        seed: keys modality dropout and the tasks' choices, together with the batch's step.
        self_distiller: self-distillation of its towers, beside them; None for none.

    Raises:
        ValueError: if there is neither a task nor a pair.
    """

    model: FusionModel

    def __init__(
        self,
        model: FusionModel,
        objective: ContrastiveObjective | None,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        weight_decay: float,
        seed: int,
        self_distiller: SelfDistiller | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler, weight_decay, self_distiller)
        if not model.tasks and objective is None:
            raise ValueError("nothing to learn: the model has no tasks, and there are no pairs")
        self.model = model
        self.objective = objective
        self._single_keys = SingleKeyWarning()
        self._seed = seed
        self._observed: dict[str, dict[str, list[dict[str, Tensor]]]] = {}

    @property
    def may_differ_by_rank(self) -> bool:
        """Samples lack modalities and targets, also all of a rank's."""
        return True

    @property
    def tasks(self) -> dict[str, Task]:
        """The model's tasks by name."""
        return {name: cast("Task", task) for name, task in self.model.tasks.items()}

    def fuse(self, batch: Batch, dropout: float = 0.0) -> FusedBatch:
        """Encode and fuse a batch, leaving modalities out at random.

        Raises:
            ValueError: if given a sample without any of the modalities.
        """
        key = stable_hash(self._seed, batch.step)
        presence = dict(batch.presence)
        if dropout:
            names = [name for name in self.model.fused if name in batch.inputs]
            presence |= drop_modalities(names, presence, batch.sample_ids, dropout, key)
        self.model.absent = frozenset()
        if self.training and not self.model.skips_absent:
            self.model.absent = absent_everywhere(list(self.model.towers), batch, presence)
        return self.model.fuse_batch(batch, presence, key=key)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted losses over all ranks; DDP's mean of gradients is their gradient."""
        if not self.model.skips_absent:
            batch = with_all_inputs(batch)
        fused = self.fuse(batch, self.model.modality_dropout)
        loss, metrics = self._task_losses(fused, batch.source)
        if self.objective is not None:
            needed = self.objective.modalities(batch.inputs, batch.source)
            if needed:
                output = self.objective(
                    {name: fused.embeddings[name] for name in needed},
                    batch.sample_ids,
                    batch.positive_keys,
                    step=batch.step,
                    seed=self._seed,
                    source=batch.source,
                )
                loss = loss + output.loss
                metrics |= output.metrics
                self._single_keys.note(batch, output.metrics)
        more, parts = self.self_distilled(batch, self._seed)
        loss, metrics = loss + more, metrics | parts
        shown = {f"train/{name}": value for name, value in metrics.items()}
        self.accumulate({"train/loss": loss.detach(), **shown})
        return loss

    def interval_means(self) -> dict[str, float]:
        """As the base; what the batches lacked is said where their metrics are read."""
        self._single_keys.report()
        return super().interval_means()

    def on_train_end(self) -> None:
        """Says it of the batches after the last logged step."""
        self._single_keys.report()

    def _task_losses(self, fused: FusedBatch, source: str) -> tuple[Tensor, dict[str, Tensor]]:
        terms_by_task = {name: task.loss(fused) for name, task in self.tasks.items()}
        if self.objective is None and not any(terms_by_task.values()):
            raise ValueError(
                f"no task finds its target in source '{source}', which has "
                f"{', '.join(fused.inputs)}; add the target, or remove the source"
            )
        # Every rank asks about every term, so that one that lacks some does not leave the rest
        # waiting; a term's mean is over the samples of all ranks.
        every = [(name, term) for name, task in self.tasks.items() for term in task.terms]
        nothing = fused.fused.features.sum() * 0.0
        empty = LossTerm(nothing, torch.zeros((), device=nothing.device))
        terms = [terms_by_task[name].get(term, empty) for name, term in every]
        counts = (
            all_reduce_sum(torch.stack([term.count.float() for term in terms])) if terms else ()
        )
        loss, metrics = nothing, {}
        for (name, term_name), term, count in zip(every, terms, counts, strict=True):
            if count > 0:
                mean = world_size() * term.total / count.to(term.total.dtype)
                loss = loss + self.tasks[name].weight * term.weight * mean
                metrics[f"loss/{name}/{term_name}"] = mean.detach()
        return loss, metrics

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collects the inputs of the tasks' scores, for `on_validation_epoch_end`."""
        fused = self.fuse(batch)
        kept = self._observed.setdefault(batch.source, defaultdict(list))
        for name, task in self.tasks.items():
            observed = {k: v.cpu() for k, v in task.observe(fused).items()}
            if observed:
                kept[name].append(observed)

    def on_validation_epoch_end(self) -> None:
        """Logs every score as `val/SOURCE/TASK_METRIC`, over all ranks' samples.

        `val/score` is the mean over the tasks of the first metric of each that grows when it gets
        better.
        """
        first = []
        gathered = all_gather_object({s: dict(tasks) for s, tasks in self._observed.items()})
        self._observed.clear()
        for source in dict.fromkeys(source for rank in gathered for source in rank):
            for name, task in self.tasks.items():
                parts = [part for rank in gathered for part in rank.get(source, {}).get(name, ())]
                if parts:
                    scores = task.score(joined(parts, self.device))
                    for metric, value in scores.values.items():
                        self.log(f"val/{source}/{name}_{metric}", value)
                    growing = [v for m, v in scores.values.items() if m not in ERRORS]
                    first += growing[:1]
        self.log_score(first)


def with_all_inputs(batch: Batch) -> Batch:
    """``batch`` with every modality that another rank's has: zeros, of which no sample is present.

    For towers that all ranks have to compute together; every rank has to call.
    """
    own = {name: tuple(value.shape[1:]) for name, value in batch.inputs.items()}
    lengths = {name: mask.shape[1] for name, mask in batch.masks.items()}
    dtypes = {name: value.dtype for name, value in batch.inputs.items()}
    every = all_gather_object((own, lengths, dtypes))
    inputs, masks, presence = dict(batch.inputs), dict(batch.masks), dict(batch.presence)
    device, size = batch.sample_ids.device, len(batch)
    for shapes, others, kinds in every:
        for name in sorted(shapes.keys() - inputs.keys()):
            inputs[name] = torch.zeros(size, *shapes[name], dtype=kinds[name], device=device)
            presence[name] = torch.zeros(size, dtype=torch.bool, device=device)
            if name in others:
                masks[name] = torch.zeros(size, others[name], dtype=torch.bool, device=device)
    return replace(batch, inputs=inputs, masks=masks, presence=presence)


def absent_everywhere(
    names: Sequence[str], batch: Batch, presence: Mapping[str, Tensor]
) -> frozenset[str]:
    """Those of ``names`` that no sample of any rank has; every rank has to call."""
    own = [
        presence[name].any().float()
        if name in presence
        else torch.tensor(float(name in batch.inputs))
        for name in names
    ]
    device = batch.sample_ids.device
    counts = all_reduce_sum(torch.stack([value.to(device) for value in own])).tolist()
    return frozenset(name for name, count in zip(names, counts, strict=True) if not count)


def drop_modalities(
    names: Sequence[str],
    presence: Mapping[str, Tensor],
    ids: Tensor,
    probability: float,
    key: int,
) -> dict[str, Tensor]:
    """Leaves modalities out of samples at random; of those that a sample has, one always stays.

    The choice is a hash of sample, modality and ``key``: the same on any number of ranks.

    Args:
        names: the modalities that may go.
        presence: modality -> ``[B]`` bool, where not every sample has it.
        ids: ``[B]`` int64, of the samples.
        probability: of leaving one out.
        key: signed 64-bit integer.

    Returns:
        Modality -> ``[B]`` bool, for all of ``names``.
    """
    there = torch.stack(
        [presence.get(name, torch.ones_like(ids, dtype=torch.bool)) for name in names], dim=1
    )
    places = torch.tensor([stable_hash(name) for name in names], device=ids.device)
    draws = uniform(ids, places, key)  # [B, M]
    keep = there & (draws >= probability)
    last = draws.masked_fill(~there, -1.0).argmax(dim=1, keepdim=True)
    keep = keep | (there & torch.zeros_like(keep).scatter(1, last, True))
    return {name: keep[:, index] for index, name in enumerate(names)}
