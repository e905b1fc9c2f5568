"""What is about to be trained, before the first step: towers, data, schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from multimodal.models.towers import EmbeddingModel


class Summary(pl.Callback):
    """Prints tables on standard output before the first step.

    The towers with their parameters, trained and frozen; the samples of every source by split; of
    every modality; steps, batches, epochs and the learning rate.
    """

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints them."""
        console = Console()
        console.print(towers_table(pl_module))
        if (data := getattr(trainer, "datamodule", None)) is not None:
            console.print(data_table(data))
            console.print(modalities_table(data))
        line = f"[bold]schedule[/]  {schedule_line(trainer)}"
        console.print(line, highlight=False, soft_wrap=True)


def towers_table(module: pl.LightningModule) -> Table:
    """The towers, and what else has parameters: all, trained and frozen ones."""
    table = _table("tower", "encoder", "parameters", "trained", "frozen")
    model, counted = getattr(module, "model", None), set[int]()
    if isinstance(model, EmbeddingModel):
        seen: dict[int, str] = {}
        for name in model.towers:
            tower = model.tower(name)
            if id(tower) in seen:
                table.add_row(name, f"that of {seen[id(tower)]}", "", "", "")
                continue
            seen[id(tower)] = name
            encoder = getattr(tower, "encoder", tower)
            table.add_row(name, type(encoder).__name__, *_counts(tower, counted))
    rest = _counts(module, counted)
    if rest[0] != "0":
        table.add_row("the rest", "fusion, tasks, scales", *rest)
    return table


def _counts(module: nn.Module, counted: set[int]) -> tuple[str, str, str]:
    """Parameters in all, trained, frozen, of those that were not counted before."""
    new = [p for p in module.parameters() if id(p) not in counted]
    counted.update(id(p) for p in new)
    total = sum(p.numel() for p in new)
    trained = sum(p.numel() for p in new if p.requires_grad)
    return f"{total:,}", f"{trained:,}", f"{total - trained:,}"


USES = {"training": "sources", "validation": "val_sources"}


def data_table(data: Any) -> Table:
    """The samples of each source that is trained or validated on."""
    table = _table("source", "used for", "split", "samples", "modalities", left=(0, 1, 2, 4))
    for use, sources in USES.items():
        for name, source in (getattr(data, sources, None) or {}).items():
            count = _samples(source)
            samples = "a stream" if count is None else f"{count:,}"
            split = str(getattr(source, "split", ""))
            table.add_row(name, use, split, samples, ", ".join(source.modalities))
    return table


def modalities_table(data: Any) -> Table:
    """The samples of each modality; of an optional one, which samples may lack, at most so many."""
    table = _table("modality", *(f"{use} samples" for use in USES), "of sources", left=(0, 3))
    # Use -> modality -> name of a source that has it -> the source.
    by_use: dict[str, dict[str, dict[str, Any]]] = {use: {} for use in USES}
    for use, sources in USES.items():
        for name, source in (getattr(data, sources, None) or {}).items():
            for modality in source.modalities:
                by_use[use].setdefault(modality, {})[name] = source
    for modality in dict.fromkeys(m for of_use in by_use.values() for m in of_use):
        held = [of_use.get(modality, {}) for of_use in by_use.values()]
        names = dict.fromkeys(name for of_use in held for name in of_use)
        counts = (_count(modality, list(of_use.values())) for of_use in held)
        table.add_row(modality, *counts, ", ".join(names))
    return table


def _count(modality: str, sources: Sequence[Any]) -> str:
    counts = [_samples(source) for source in sources]
    known = sum(count for count in counts if count is not None)
    decoders = (getattr(source, "decoder", None) for source in sources)
    optional = any(d is not None and d.is_optional(modality) for d in decoders)
    shown = [f"{'at most ' if optional else ''}{known:,}"] if known or None not in counts else []
    return " and ".join([*shown, *(["a stream"] if None in counts else [])])


def _samples(source: Any) -> int | None:
    """How many there are; None of a stream."""
    try:
        return len(source)
    except TypeError:
        return None


def schedule_line(trainer: pl.Trainer) -> str:
    """Steps, samples of a step, epochs, and the rate."""
    steps = trainer.estimated_stepping_batches
    per_step = trainer.world_size * trainer.accumulate_grad_batches
    batch = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    parts = [f"{int(steps):,} steps" if steps != float("inf") else "steps without a limit"]
    if trainer.global_step:
        parts[0] += f", of which {trainer.global_step:,} are done"
    if batch:
        parts.append(f"{batch * per_step:,} samples each")
        batches = trainer.num_training_batches
        if steps != float("inf") and batches not in (0, float("inf")):
            epochs = float(steps) * trainer.accumulate_grad_batches / float(batches)
            parts.append(f"{epochs:,.1f} epochs")
    for optimizer in trainer.optimizers[:1]:
        peak = max(float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups)
        parts.append(f"{type(optimizer).__name__}, learning rate up to {peak:g}")
    parts.append(f"precision {trainer.precision}")
    return "; ".join(parts)


def _table(*columns: str, left: tuple[int, ...] = (0, 1)) -> Table:
    table = Table(box=box.SIMPLE)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place in left else "right")
    return table
