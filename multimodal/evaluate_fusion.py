"""Held-out evaluation of a fusion model: its tasks, what each modality brings, where it looks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor, nn

from multimodal.data.datamodule import evaluation_batches
from multimodal.data.source import Source
from multimodal.data.transforms.base import Transform
from multimodal.data.transforms.text import TextTransform
from multimodal.evaluation.prediction import Scores
from multimodal.evaluation.report import attention as drawing
from multimodal.evaluation.report.sections import Section
from multimodal.evaluation.sets import EvaluationSet
from multimodal.evaluation.tasks import TaskResult
from multimodal.fusion.contract import AttentionMap
from multimodal.fusion_model import FusionModel
from multimodal.tasks.captioning import Captioning
from multimodal.tasks.contract import FusedBatch, Task, take
from multimodal.tasks.targets import TargetTask
from multimodal.types import Batch

Observed = dict[str, list[dict[str, Tensor]]]
SHOWN_WORDS = 6  # of a text that asks, each with a map of its own
BEAMS = 4
ATTENTION = (
    "Held-out samples, evenly spaced through the set and not chosen by hand, as the model saw "
    "them. What a query attended to in the last layer glows, mean over heads; a query of several "
    "tokens is their mean, and words ask one by one too."
)


@torch.no_grad()
def evaluate_tasks(
    model: FusionModel,
    name: str,
    source: Source,
    transforms: Mapping[str, Transform],
    batch_size: int = 256,
    num_workers: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> list[TaskResult]:
    """The scores of every task that finds its target in ``source``.

    A task on targets is scored three times more: with each modality alone, without each, and by
    the modalities' own heads.

    Args:
        model: in evaluation mode, on the device to evaluate on.
        name: of the set.
        source: the samples.
        transforms: by modality.
        batch_size: samples at once.
        num_workers: processes that read and decode.
        advance: told how many samples are done.
    """
    device = next(model.parameters()).device
    tasks = {task_name: cast("Task", task) for task_name, task in model.tasks.items()}
    observed: dict[tuple[str, str], Observed] = defaultdict(lambda: defaultdict(list))
    shares: list[dict[str, float]] = []
    wanted = _wanted(model, source)
    for batch in evaluation_batches(source, transforms, wanted, batch_size, num_workers):
        fused = fuse(model, batch.to(device), need_attention=True)
        shares += attention_shares(fused.fused.attention, model.fused)
        for key, variant in {("all", ""): fused, **_variants(model, fused)}.items():
            for task_name, task in tasks.items():
                if key == ("all", "") or isinstance(task, TargetTask):
                    found = task.observe(variant)
                    if found:
                        observed[key][task_name].append({k: v.cpu() for k, v in found.items()})
        advance(len(batch))
    results = []
    for task_name, parts in observed["all", ""].items():
        task = tasks[task_name]
        whole = _joined(parts, device)
        result = TaskResult(name, task_name, task.score(whole))
        if isinstance(task, TargetTask):
            result.own = task.own_scores(whole)
        for (kind, modality), per_task in observed.items():
            if kind != "all" and task_name in per_task:
                scores: dict[str, Scores] = getattr(result, kind)
                scores[modality] = task.score(_joined(per_task[task_name], device))
        if shares:
            result.attention = {
                m: float(np.mean([share[m] for share in shares if m in share]))
                for m in dict.fromkeys(m for share in shares for m in share)
            }
        results.append(result)
    return results


def fuse(model: FusionModel, batch: Batch, need_attention: bool = False) -> FusedBatch:
    """A batch through encoders and fusion."""
    fused: FusedBatch = model(
        batch.inputs,
        batch.masks,
        batch.presence,
        need_attention=need_attention,
        sample_ids=batch.sample_ids,
        positive_keys=batch.positive_keys,
    )
    return fused


def attention_shares(
    maps: Sequence[AttentionMap], modalities: Sequence[str]
) -> list[dict[str, float]]:
    """For each map that had a choice among modalities: what share each got, over all samples."""
    shares = []
    for found in maps:
        among = [name for name in modalities if name in found.spans]
        if len(among) < 2:
            continue
        masses = []
        for name in among:
            mass = found.over(name).sum(dim=-1)  # [B, T]
            real = torch.ones_like(mass) if found.mask is None else found.mask.to(mass.dtype)
            masses.append((mass * real).sum() / real.sum().clamp_min(1))
        total = torch.stack(masses).sum().clamp_min(1e-12)
        shares.append({n: float(m / total) for n, m in zip(among, masses, strict=True)})
    return shares


def _wanted(model: FusionModel, source: Source) -> list[str]:
    targets = {task.target for task in model.tasks.values() if isinstance(task, TargetTask)}
    return [name for name in source.modalities if name in model.towers or name in targets]


def _variants(model: FusionModel, fused: FusedBatch) -> dict[tuple[str, str], FusedBatch]:
    """The batch with each modality alone and without each, for those samples that have it so."""
    there = [name for name in model.fused if name in fused.encoded]
    if len(there) < 2:
        return {}
    found = {}
    for name in there:
        for kind, kept in (("alone", [name]), ("without", [n for n in there if n != name])):
            variant = _narrow(model, fused, kept)
            if variant is not None:
                found[kind, name] = variant
    return found


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


def _joined(parts: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    return {key: torch.cat([part[key] for part in parts]).to(device) for key in parts[0]}


@torch.no_grad()
def examples(
    model: FusionModel, source: Source, transforms: Mapping[str, Transform], count: int
) -> list[drawing.Example]:
    """Samples evenly spaced through a set, with what the model attended to and says.

    Args:
        model: in evaluation mode.
        source: the samples.
        transforms: by modality.
        count: how many; 0 for none.
    """
    device = next(model.parameters()).device
    shown = []
    count = min(count, len(source))
    every = evaluation_batches(source, transforms, _wanted(model, source), 1)
    chosen = {int(place) for place in np.linspace(0, len(source) - 1, count)} if count else set()
    for place, batch in enumerate(every if chosen else ()):
        if place not in chosen:
            continue
        fused = fuse(model, batch.to(device), need_attention=True)
        lines = []
        for name, task in model.tasks.items():
            if isinstance(task, TargetTask) and len(fused.rows(task.target)):
                said = task.describe(task.logits(fused, fused.rows(task.target))[0])
                true = task.describe_target(fused.inputs[task.target][0])
                lines.append((name, f"{true}; the model says {said}"))
            elif isinstance(task, Captioning):
                lines += _captions(model, task, fused, transforms[task.text])
        attended = []
        for found in _last_layers(fused.fused.attention):
            attended += _attended(model, found, fused, transforms)
        shown.append(drawing.Example(batch.keys[0], lines, attended))
    return shown


def sections(
    model: FusionModel, sets: Mapping[str, EvaluationSet], transforms: Mapping[str, Transform]
) -> list[Section]:
    """Parts of the report: the tasks' figures, and where the model looked."""
    shown = []
    for name, entry in sets.items():
        if entry.source is not None and entry.gallery:
            drawn = examples(model.eval(), entry.source, transforms, entry.gallery)
            if any(example.attended or example.lines for example in drawn):
                shown.append(Markup("<h3>{}</h3>{}").format(name, drawing.gallery(drawn)))
    if not shown:
        return []
    return [Section("attention", "Attention", Markup("").join(shown), ATTENTION)]


def _captions(
    model: FusionModel, task: Captioning, fused: FusedBatch, transform: Transform
) -> list[tuple[str, str]]:
    assert isinstance(transform, TextTransform)
    tokenizer = transform.tokenizer
    start, end = tokenizer.start, tokenizer.end
    assert start is not None
    assert end is not None

    def encode(ids: Tensor) -> Tensor:
        return model.tower(task.text).encode(ids).tokens

    lines = []
    if task.text in fused.inputs:
        ids = fused.inputs[task.text][0].tolist()
        lines.append(("caption", tokenizer.decode(ids[1 : ids.index(end)])))
    for title, beams in (("greedy", 1), (f"{BEAMS} beams", BEAMS)):
        (text,) = task.generate(
            encode, fused.fused.tokens, fused.fused.mask, start, end,
            transform.context_length - 2, beams,
        )  # fmt: skip
        lines.append((title, tokenizer.decode(text)))
    return lines


def _last_layers(maps: Sequence[AttentionMap]) -> list[AttentionMap]:
    """Of every query and kind of keys, the last layer."""
    last = {(found.query, tuple(found.spans)): found for found in maps}
    return list(last.values())


def _attended(
    model: FusionModel, found: AttentionMap, fused: FusedBatch, transforms: Mapping[str, Transform]
) -> list[drawing.Attended]:
    """The drawings of one map of a batch of one sample."""
    drawn = []
    for modality in (name for name in found.spans if name in model.fused):
        if modality not in fused.inputs or modality not in fused.encoded or modality == found.query:
            continue
        weights = found.over(modality)[0]  # [T, S]
        real = weights.new_ones(len(weights)).bool() if found.mask is None else found.mask[0]
        asks: list[tuple[str, Tensor]] = [(found.query, weights[real].mean(dim=0))]
        if isinstance(transforms.get(found.query), TextTransform) and found.query in fused.inputs:
            words = _words(fused.inputs[found.query][0], transforms[found.query])
            pairs = zip(words, weights, real.tolist(), strict=False)
            each = [(f"“{word}”", row) for word, row, is_real in pairs if is_real]
            asks += each[1 : SHOWN_WORDS + 1]  # the start token stands in front
        for query, heat in asks:
            media, picture = _draw(
                model.tower(modality).encoder,
                fused.inputs[modality][0],
                heat.double().cpu().numpy(),
                transforms.get(modality),
            )
            drawn.append(drawing.Attended(query, modality, media, picture))
    return drawn


def _words(ids: Tensor, transform: Any) -> list[str]:
    decode = transform.tokenizer.decode
    return [decode([i]).strip() or "·" for i in ids.tolist()]


def _draw(encoder: nn.Module, inputs: Tensor, heat: Any, transform: Any) -> tuple[Any, Any]:
    """The drawing of one input under a heat over its tokens, and as a picture if it is one."""
    values = inputs.double().cpu().numpy()
    if isinstance(transform, TextTransform):
        return drawing.on_words(_words(inputs, transform), heat[: len(values)]), None
    grid = _grid(encoder, len(heat))
    if grid is None or values.ndim < 2:
        return Markup("<small>{} %</small>").format(f"{100 * heat.sum():.0f}"), None
    heat = heat[-int(np.prod(grid)) :].reshape(grid)  # a class token stands in front
    if values.ndim == 2:
        return drawing.on_lines(values, heat.reshape(-1)), None
    wide = values.shape[0] == 1 and values.shape[2] > values.shape[1]
    picture = drawing.on_spectrogram(values[0], heat) if wide else drawing.on_picture(values, heat)
    return drawing.tag(picture), picture


def _grid(encoder: nn.Module, tokens: int) -> tuple[int, ...] | None:
    """How an encoder's tokens are laid out; None where it does not say."""
    grid = getattr(encoder, "grid", None)
    if isinstance(grid, tuple):
        return grid if np.prod(grid) <= tokens else None
    size = getattr(encoder, "size", None)
    if isinstance(size, tuple) and len(size) == 2:  # halved alike on both sides
        cut = round((size[0] * size[1] / tokens) ** 0.5)
        found = (size[0] // cut, size[1] // cut)
        return found if np.prod(found) == tokens else None
    return None
