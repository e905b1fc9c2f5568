"""Loaders and evaluations from flat options, as tests like to write them."""

from __future__ import annotations

from dataclasses import fields

from multimodal.data.loading.evaluation_loader import EvaluationLoader
from multimodal.data.loading.loader import ScheduledLoader
from multimodal.data.settings import EvaluationData, LoaderSettings, OrderSettings
from multimodal.evaluation.run import evaluate


def scheduled_loader(sources, transforms, batch_size, seed, rank=0, world_size=1, **options):
    of_order = {field.name for field in fields(OrderSettings)} & options.keys()
    order = OrderSettings(**{name: options.pop(name) for name in of_order})
    loading = LoaderSettings(**options)
    return ScheduledLoader(sources, transforms, batch_size, seed, rank, world_size, loading, order)


def evaluation_data(transforms, batch_size=256, num_workers=0, **options):
    return EvaluationData(transforms, batch_size, LoaderSettings(num_workers, **options))


def evaluation_loader(
    source, transforms, modalities, batch_size, num_workers=0,
    rank=0, world_size=1, whole_batches=False, **options,
):  # fmt: skip
    data = evaluation_data(transforms, batch_size, num_workers, **options)
    return EvaluationLoader(source, data, modalities, rank, world_size, whole_batches)


def evaluate_sets(
    model, sets, transforms, trained, batch_size=256, num_workers=0, temperatures=None
):
    data = evaluation_data(transforms, batch_size, num_workers)
    return evaluate(model, sets, data, trained, temperatures)
