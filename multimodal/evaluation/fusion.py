"""Held-out evaluation of a fusion model: its tasks, and each modality's contribution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from multimodal.core import distributed
from multimodal.core.batch import Batch
from multimodal.data.loading.evaluation_loader import EvaluationLoader
from multimodal.data.settings import EvaluationData
from multimodal.data.source import Source
from multimodal.evaluation.task_results import TaskResult
from multimodal.models.fusion.base import AttentionMap
from multimodal.models.fusion_model import FusionModel
from multimodal.models.tasks.base import FusedBatch, Task, joined, take
from multimodal.models.tasks.scores import Scores
from multimodal.models.tasks.targets import TargetTask

Variant = tuple[str, str]  # kind and modality: ("alone", "image"); ("all", "") is the whole batch


class _ObservedBatch(NamedTuple):
    number: int  # of the batch
    observed: dict[Variant, dict[str, dict[str, Tensor]]]  # variant -> task -> what it observed
    shares: list[dict[str, float]]


@torch.no_grad()
def evaluate_tasks(
    model: FusionModel,
    name: str,
    source: Source,
    data: EvaluationData,
    advance: Callable[[int], None] = lambda count: None,
) -> list[TaskResult]:
    """The scores of every task whose target is in ``source``.

    A task on targets is scored three times more: with each modality alone, without each, and by
    the modalities' own heads. Under a process group every rank calls, and observes its share of
    the batches; all get what one process would get.

    Args:
        model: in evaluation mode, on the device to evaluate on.
        name: of the set.
        source: the samples.
        data: how the samples become batches.
        advance: called with the number of finished samples of this rank.
    """

    def work() -> Iterator[_ObservedBatch]:
        loader = EvaluationLoader(
            source,
            data,
            wanted(model, source),
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            whole_batches=True,
        )
        for batch in loader:
            yield _observe(model, batch)
            advance(int((batch.repeats == 0).sum()))

    parts = sorted(distributed.all_gather_results(work), key=lambda part: part.number)
    observed: dict[Variant, dict[str, list[dict[str, Tensor]]]] = {}
    for part in parts:
        for key, per_task in part.observed.items():
            for task_name, by_variant in per_task.items():
                observed.setdefault(key, {}).setdefault(task_name, []).append(by_variant)
    shares = [share for part in parts for share in part.shares]
    device = next(model.parameters()).device
    results = []
    for task_name, pieces in observed.get(("all", ""), {}).items():
        task = cast("Task", model.tasks[task_name])
        whole = joined(pieces, device)
        result = TaskResult(name, task_name, task.score(whole))
        if isinstance(task, TargetTask):
            result.own = task.own_scores(whole)
        for (kind, modality), of_tasks in observed.items():
            if kind != "all" and task_name in of_tasks:
                scores: dict[str, Scores] = getattr(result, kind)
                scores[modality] = task.score(joined(of_tasks[task_name], device))
        if shares:
            result.attention = {
                m: float(np.mean([share[m] for share in shares if m in share]))
                for m in dict.fromkeys(m for share in shares for m in share)
            }
        results.append(result)
    return results


def _observe(model: FusionModel, batch: Batch) -> _ObservedBatch:
    fused = model.fuse_batch(batch.to(next(model.parameters()).device), need_attention=True)
    observed: dict[Variant, dict[str, dict[str, Tensor]]] = {}
    for key, variant in {("all", ""): fused, **_variants(model, fused)}.items():
        for name, task in model.tasks.items():
            if key == ("all", "") or isinstance(task, TargetTask):
                observation = cast("Task", task).observe(variant)
                if observation:
                    observed.setdefault(key, {})[name] = {
                        k: v.cpu() for k, v in observation.items()
                    }
    return _ObservedBatch(
        batch.step, observed, attention_shares(fused.fused.attention, model.fused)
    )


def attention_shares(
    maps: Sequence[AttentionMap], modalities: Sequence[str]
) -> list[dict[str, float]]:
    """For each map that had a choice among modalities: the share of each, over all samples."""
    shares = []
    for attention in maps:
        among = [name for name in modalities if name in attention.spans]
        if len(among) < 2:
            continue
        masses = []
        for name in among:
            mass = attention.over(name).sum(dim=-1)  # [B, T]
            real = (
                torch.ones_like(mass) if attention.mask is None else attention.mask.to(mass.dtype)
            )
            masses.append((mass * real).sum() / real.sum().clamp_min(1))
        total = torch.stack(masses).sum().clamp_min(1e-12)
        shares.append({n: float(m / total) for n, m in zip(among, masses, strict=True)})
    return shares


def wanted(model: FusionModel, source: Source) -> list[str]:
    """The modalities of a source that the model reads, and the targets."""
    targets = {task.target for task in model.tasks.values() if isinstance(task, TargetTask)}
    return [name for name in source.modalities if name in model.towers or name in targets]


def _variants(model: FusionModel, fused: FusedBatch) -> dict[tuple[str, str], FusedBatch]:
    """The batch with each modality alone and without each, for those samples that have it so."""
    there = [name for name in model.fused if name in fused.encoded]
    if len(there) < 2:
        return {}
    variants = {}
    for name in there:
        for kind, kept in (("alone", [name]), ("without", [n for n in there if n != name])):
            variant = _narrow(model, fused, kept)
            if variant is not None:
                variants[kind, name] = variant
    return variants


def _narrow(model: FusionModel, fused: FusedBatch, kept: Sequence[str]) -> FusedBatch | None:
    everywhere = torch.ones_like(fused.sample_ids, dtype=torch.bool)
    some = torch.stack([fused.presence.get(name, everywhere) for name in kept]).any(dim=0)
    rows = some.nonzero().flatten()
    if not len(rows):
        return None
    encoded = {name: take(fused.encoded[name], rows) for name in kept}
    presence = {name: present[rows] for name, present in fused.presence.items()}
    return replace(
        fused,
        inputs={name: value[rows] for name, value in fused.inputs.items()},
        masks={name: mask[rows] for name, mask in fused.masks.items()},
        presence=presence,
        encoded=encoded,
        fused=model.fuse(encoded, presence),
        sample_ids=fused.sample_ids[rows],
        positive_keys=fused.positive_keys[rows],
        embeddings={},
    )
