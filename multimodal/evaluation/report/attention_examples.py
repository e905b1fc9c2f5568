"""Drawings of a fusion model's attention on held-out samples."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor, nn

from multimodal.core.files import write_bytes
from multimodal.data.loading.evaluation_loader import EvaluationLoader
from multimodal.data.settings import EvaluationData
from multimodal.data.source import Source
from multimodal.data.transforms.base import Transform
from multimodal.data.transforms.text import TextTransform
from multimodal.evaluation.fusion import wanted
from multimodal.evaluation.report import attention as drawing
from multimodal.evaluation.report.sections import Section
from multimodal.evaluation.sets import EvaluationSet
from multimodal.models.fusion.base import AttentionMap
from multimodal.models.fusion_model import FusionModel
from multimodal.models.tasks.base import FusedBatch
from multimodal.models.tasks.captioning import Captioning
from multimodal.models.tasks.targets import TargetTask

SHOWN_WORDS = 6  # of a text query, each with its own map
BEAMS = 4
ATTENTION = (
    "Held-out samples, evenly spaced through the set and not chosen by hand, as the model saw "
    "them. A query's attention in the last layer is highlighted, mean over heads; a query of "
    "several tokens is their mean, and words are shown individually too."
)


@torch.no_grad()
def examples(
    model: FusionModel, source: Source, transforms: Mapping[str, Transform], count: int
) -> list[drawing.Example]:
    """Samples evenly spaced through a set, with the model's attention and predictions.

    Args:
        model: in evaluation mode.
        source: the samples.
        transforms: by modality.
        count: how many; 0 for none.
    """
    device = next(model.parameters()).device
    shown = []
    if not min(count, len(source)):
        return []
    stride = max(1, (len(source) - 1) // max(1, count - 1))  # those between are not read
    batches = EvaluationLoader(
        source, EvaluationData(transforms, 1), wanted(model, source), world_size=stride
    )
    for batch in islice(batches, count):
        fused = model.fuse_batch(batch.to(device), need_attention=True)
        lines = []
        for name, task in model.tasks.items():
            if isinstance(task, TargetTask) and len(fused.rows(task.target)):
                said = task.describe(task.logits(fused, fused.rows(task.target))[0])
                true = task.describe_target(fused.inputs[task.target][0])
                lines.append((name, f"{true}; the model says {said}"))
            elif isinstance(task, Captioning):
                lines += _captions(model, task, fused, transforms[task.text])
        attended = []
        for attention in _last_layers(fused.fused.attention):
            attended += _attended(model, attention, fused, transforms)
        shown.append(drawing.Example(batch.keys[0], lines, attended))
    return shown


def sections(
    model: FusionModel,
    sets: Mapping[str, EvaluationSet],
    transforms: Mapping[str, Transform],
    folder: Path,
) -> list[Section]:
    """The part of the report that shows the model's attention.

    The drawings also go to ``folder`` as pictures, ``SET/NUMBER_QUERY_MODALITY.png``, for loggers.
    """
    shown = []
    shutil.rmtree(folder, ignore_errors=True)  # of an evaluation before
    for name, entry in sets.items():
        if entry.source is not None and entry.gallery:
            drawn = examples(model.eval(), entry.source, transforms, entry.gallery)
            if any(example.attended or example.lines for example in drawn):
                shown.append(Markup("<h3>{}</h3>{}").format(name, drawing.gallery(drawn)))
            _save(drawn, folder / name)
    if not shown:
        return []
    return [Section("attention", "Attention", Markup("").join(shown), ATTENTION)]


def _save(examples: Sequence[drawing.Example], folder: Path) -> None:
    for number, example in enumerate(examples):
        for place, each in enumerate(example.attended):
            if each.picture is not None:
                query = re.sub(r"\W+", "", each.query) or "word"
                picture = io.BytesIO()
                each.picture.save(picture, "PNG")
                name = f"{number}_{place:02d}_{query}_{each.modality}.png"
                write_bytes(folder / name, picture.getvalue())


def _captions(
    model: FusionModel, task: Captioning, fused: FusedBatch, transform: Transform
) -> list[tuple[str, str]]:
    assert isinstance(transform, TextTransform)
    tokenizer = transform.tokenizer
    start, end = tokenizer.start, tokenizer.end
    assert start is not None
    assert end is not None

    def encode(ids: Tensor) -> Tensor:
        # All of them are words: without a mask a tower would search for an end token.
        return model.tower(task.text).encode(ids, torch.ones_like(ids, dtype=torch.bool)).tokens

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
    last = {(attention.query, tuple(attention.spans)): attention for attention in maps}
    return list(last.values())


def _attended(
    model: FusionModel,
    attention: AttentionMap,
    fused: FusedBatch,
    transforms: Mapping[str, Transform],
) -> list[drawing.Attended]:
    """The drawings of one map of a batch of one sample."""
    drawn = []
    for modality in (name for name in attention.spans if name in model.fused):
        if (
            modality not in fused.inputs
            or modality not in fused.encoded
            or modality == attention.query
        ):
            continue
        weights = attention.over(modality)[0]  # [T, S]
        real = (
            weights.new_ones(len(weights)).bool() if attention.mask is None else attention.mask[0]
        )
        asks: list[tuple[str, Tensor]] = [(attention.query, weights[real].mean(dim=0))]
        if (
            isinstance(transforms.get(attention.query), TextTransform)
            and attention.query in fused.inputs
        ):
            words = words_of(fused.inputs[attention.query][0], transforms[attention.query])
            pairs = zip(words, weights, real.tolist(), strict=False)
            each = [(f"“{word}”", row) for word, row, is_real in pairs if is_real]
            asks += each[1 : SHOWN_WORDS + 1]  # the start token comes first
        for query, heat in asks:
            media, picture = draw(
                model.tower(modality).encoder,
                fused.inputs[modality][0],
                heat.double().cpu().numpy(),
                transforms.get(modality),
            )
            drawn.append(drawing.Attended(query, modality, media, picture))
    return drawn


def words_of(ids: Tensor, transform: Any) -> list[str]:
    """Each token of a text as a word."""
    decode = transform.tokenizer.decode
    return [decode([i]).strip() or "·" for i in ids.tolist()]


def draw(encoder: nn.Module, inputs: Tensor, heat: Any, transform: Any) -> tuple[Any, Any]:
    """The drawing of one input under a heat over its tokens, and the same as a picture."""
    values = inputs.double().cpu().numpy()
    if isinstance(transform, TextTransform):
        words = words_of(inputs, transform)
        shares = heat[: len(values)]
        return drawing.on_words(words, shares), drawing.words_picture(words, shares)
    grid = _grid(encoder, len(heat))
    if grid is None or values.ndim < 2:
        return Markup("<small>{} %</small>").format(f"{100 * heat.sum():.0f}"), None
    heat = heat[-int(np.prod(grid)) :].reshape(grid)  # a class token comes first
    if values.ndim == 2:
        heat = heat.reshape(-1)
        return drawing.on_lines(values, heat), drawing.lines_picture(values, heat)
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
        cells = (size[0] // cut, size[1] // cut)
        return cells if np.prod(cells) == tokens else None
    return None
