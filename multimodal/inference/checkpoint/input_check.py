"""Compares what transforms make with what towers and tasks take, before the first batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from multimodal.core.errors import ConfigError, ConfigProblem, InputMismatchError
from multimodal.models.fusion_model import FusionModel
from multimodal.models.towers import EmbeddingModel

# Keywords of transforms and of encoders that decide the shape of an input.
SIZES = (
    "size", "image_size", "in_channels", "num_frames", "padded_frames", "num_mel_bins", "length",
    "context_length", "fill", "shape", "in_features", "channels", "classes", "num_categories",
    "outputs",
)  # fmt: skip


def check_inputs(model: EmbeddingModel, transforms: Mapping[str, Any]) -> None:
    """Checks that every tower takes what its transform makes, and every task its target.

    Nothing is read or computed: transforms state a ``shape``, encoders compare it. Those that do
    not are left to the first batch.

    Args:
        model: the towers.
        transforms: by modality; those without a tower or a task are ignored.

    Raises:
        ConfigError: listing every transform whose results do not fit.
    """
    problems = [*_towers(model, transforms), *_targets(model, transforms)]
    if problems:
        raise ConfigError(problems)


def _towers(model: EmbeddingModel, transforms: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    own: dict[int, str] = {}
    for modality in model.towers:
        tower, transform = model.tower(modality), transforms.get(modality)
        owner = own.setdefault(id(tower), modality)
        where, theirs = f"data.transforms.{modality}", f"model.towers.{owner}.encoder"
        shape = getattr(transform, "shape", None)
        if transform is None or shape is None:
            continue
        shapes = [shape, [1]] if hasattr(transform, "tokenizer") else [shape]
        dtype = getattr(transform, "dtype", torch.float32)
        advice = (
            f"set {_keys(where, transform)} as the tower has it, or in a new run "
            f"{_keys(theirs, tower.encoder)} as the transform has it"
        )
        try:
            for each in shapes:
                tower.check_inputs(*transform.collate([torch.zeros(tuple(each), dtype=dtype)]))
        except InputMismatchError as error:
            yield ConfigProblem(where, f"its results do not fit {theirs}: {error}; {advice}")
            continue
        classes = getattr(transform, "num_classes", None)
        rows = getattr(tower.encoder, "num_categories", None)
        if classes is not None and rows is not None and classes > rows:
            problem = f"has {classes} classes, but {theirs} expects num_categories={rows}; {advice}"
            yield ConfigProblem(f"{where}.classes", problem)


def _targets(model: EmbeddingModel, transforms: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    tasks = model.tasks.items() if isinstance(model, FusionModel) else ()
    for name, task in tasks:
        target = getattr(task, "target", None)
        transform = transforms.get(target) if isinstance(target, str) else None
        given = getattr(transform, "num_classes", None) or getattr(transform, "outputs", None)
        classes = getattr(task, "classes", None)
        expected = getattr(task, "outputs", None) if classes is None else len(classes)
        if given is not None and expected is not None and given != expected:
            what = "outputs" if classes is None else "classes"
            yield ConfigProblem(
                f"tasks.{name}.{what}",
                f"the task has {expected} {what}, but its target data.transforms.{target} has "
                f"{given}: give both the same",
            )


def _keys(where: str, part: Any) -> str:
    """The keys at ``where`` that decide the shape."""
    parameters = inspect.signature(type(part)).parameters
    names = [name for name in SIZES if name in parameters]
    return " or ".join(f"{where}.{name}" for name in names) or where
