"""Held-out evaluation of a model: embed every configured set once, score it, report it."""

from __future__ import annotations

import csv
import datetime
import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from markupsafe import Markup
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor

from multimodal.data.datamodule import evaluation_batches
from multimodal.data.decode import Signal
from multimodal.data.manifest import load_manifest
from multimodal.data.source import Decoded, Source
from multimodal.data.transforms.base import Transform
from multimodal.evaluation.ground_truth import content_ids
from multimodal.evaluation.report.charts import curves
from multimodal.evaluation.report.media import draw
from multimodal.evaluation.report.page import Gallery, Page, make_gallery, render
from multimodal.evaluation.results import Missing, Results, SetInfo
from multimodal.evaluation.scoring import Embedded, score_retrieval, score_zero_shot
from multimodal.evaluation.sets import EvaluationSet, ZeroShotTask
from multimodal.models import EmbeddingModel

TrainedPairs = Mapping[frozenset[str], frozenset[str] | None]


def evaluate_run(
    model: EmbeddingModel, cfg: DictConfig, folder: Path, trained: TrainedPairs
) -> Results:
    """Evaluates ``model`` on the sets of ``cfg.evaluation`` and leaves the results in ``folder``.

    Prints the table; writes ``metrics.json`` and ``report.html``.

    Args:
        model: its towers, on the device to evaluate on.
        cfg: the run's configuration.
        folder: the run's; training curves are read from its ``metrics.csv`` if there is one.
        trained: the pairs that were trained together (:func:`trained_pairs`).

    Raises:
        ValueError: If a set cannot be evaluated as configured, naming it.
    """
    sets = build_sets(cfg)
    transforms = instantiate(cfg.data.transforms, _convert_="all")
    results = evaluate(
        model, sets, transforms, trained, cfg.data.eval_batch_size, cfg.data.num_workers
    )
    report = write(results, sets, folder, cfg, facts(model, results))
    Console().print(results.table())
    print(f"report: {report}")
    return results


def build_sets(cfg: DictConfig) -> dict[str, EvaluationSet]:
    """The sets of ``cfg.evaluation``; those set to null are left out."""
    sets = {}
    for name, node in cfg.evaluation.sets.items():
        if node is not None:
            entry = instantiate(node, _convert_="all")
            tasks = [ZeroShotTask(**task) for task in entry.pop("zero_shot", None) or ()]
            sets[str(name)] = EvaluationSet(**entry, zero_shot=tasks)
    return sets


def trained_pairs(*configs: DictConfig | None) -> dict[frozenset[str], frozenset[str] | None]:
    """The pairs of modalities that any of the runs, or their anchors, trained together.

    Returns:
        Pair -> names of the manifests it was trained on, None for whatever had both: a pair that
        is restricted to some sources never met in the others, and is emergent there.
    """
    pairs: dict[frozenset[str], frozenset[str] | None] = {}
    for cfg in configs:
        if cfg is None:
            continue
        for ends in OmegaConf.select(cfg, "anchor.pairs") or ():
            pairs[frozenset(ends)] = None
        for pair in cfg.pairs.values():
            ends, sources = frozenset((pair.anchor, pair.other)), pair.get("sources")
            before = pairs.get(ends, frozenset())
            if sources is None or before is None:
                pairs[ends] = None
            else:
                manifests = (cfg.data.sources[name].manifest for name in sources)
                pairs[ends] = before | {load_manifest(manifest).name for manifest in manifests}
    return pairs


def evaluate(
    model: EmbeddingModel,
    sets: Mapping[str, EvaluationSet],
    transforms: Mapping[str, Transform],
    trained: TrainedPairs,
    batch_size: int = 256,
    num_workers: int = 0,
) -> Results:
    """Embeds each set once and scores all that is asked of it.

    Whatever cannot be scored, for want of a tower or of samples, is listed in the results.

    Args:
        model: its towers, on the device to evaluate on; left in the mode it came in.
        sets: by name.
        transforms: modality -> transform.
        trained: pair -> names of the manifests it was trained on, or None for any.
        batch_size: samples embedded at once.
        num_workers: processes that read and decode.

    Raises:
        ValueError: If a set asks for what its source does not have, or on NaN embeddings.
    """
    run = _Evaluation(model, transforms, trained, batch_size, num_workers, Results())
    mode = model.training
    model.eval()
    columns = (TextColumn("evaluating {task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for name, entry in sets.items():
            task = progress.add_task(name, total=len(entry.source or ()))
            try:
                run.one_set(name, entry, functools.partial(progress.advance, task))
            except ValueError as error:
                raise ValueError(f"evaluation set '{name}': {error}") from error
            progress.remove_task(task)
    model.train(mode)
    return run.results


@dataclass(slots=True)
class _Evaluation:
    model: EmbeddingModel
    transforms: Mapping[str, Transform]
    trained: TrainedPairs
    batch_size: int
    num_workers: int
    results: Results

    def one_set(self, name: str, entry: EvaluationSet, advance: Callable[[int], None]) -> None:
        """Embeds and scores one set; ``advance`` is told how many samples are done."""
        if entry.source is None:
            note = f": {entry.description}" if entry.description else ""
            self._miss(name, "samples", f"no sample source{note}")
            return
        source: Source = entry.source
        pairs = entry.pairs(source.modalities)
        absent = [modality for modality in source.modalities if modality not in self.model.towers]
        for modality in absent:
            self._miss(name, modality, "the model has no tower for it")
        if len(absent) == len(source.modalities):
            return
        embedded, metadata = self._embed(name, source, absent, advance)
        unread = len(source) - len(metadata)
        if unread:
            self._miss(name, f"{unread} of {len(source)} samples", "cannot be read: see the log")
        if entry.duration_baseline:
            embedded = replace(embedded, lengths=_lengths(source, embedded.indices))
        self.results.sets[name] = SetInfo(name, source.split, len(metadata), entry.description)
        drawn: set[frozenset[str]] = set()
        for query, gallery in pairs:
            ends = frozenset((query, gallery))
            if not ends & set(absent):
                new = ends not in drawn
                trained = self._is_trained(ends, source)
                self.results.retrievals.append(
                    score_retrieval(embedded, query, gallery, trained, entry.gallery, matrix=new)
                )
                drawn.add(ends)
        for task in entry.zero_shot:
            if "text" not in self.model.towers:
                self._miss(name, f"zero-shot {task.label}", "the model has no tower for text")
            elif task.modality not in absent:
                self._classify(embedded, metadata, source, task)

    def _miss(self, name: str, what: str, reason: str) -> None:
        self.results.missing.append(Missing(name, what, reason))

    def _is_trained(self, ends: frozenset[str], source: Source) -> bool:
        manifests = self.trained.get(ends, frozenset())
        return manifests is None or source.name in manifests

    @torch.no_grad()
    def _embed(
        self, name: str, source: Source, absent: Sequence[str], advance: Callable[[int], None]
    ) -> tuple[Embedded, list[dict[str, Any]]]:
        modalities = [modality for modality in source.modalities if modality not in absent]
        device = next(self.model.parameters()).device
        embeddings: dict[str, list[Tensor]] = {modality: [] for modality in modalities}
        items: dict[str, list[Tensor]] = {modality: [] for modality in modalities}
        positive_keys: list[Tensor] = []
        shard_keys: list[str] = []
        metadata: list[dict[str, Any]] = []
        for batch in evaluation_batches(
            source, self.transforms, modalities, self.batch_size, self.num_workers
        ):
            for modality in modalities:
                inputs, mask = batch.inputs[modality], batch.masks.get(modality)
                items[modality].append(content_ids(inputs, mask))
                on_device = None if mask is None else mask.to(device)
                vectors = self.model.embed(modality, inputs.to(device), on_device)
                embeddings[modality].append(vectors.cpu())
            positive_keys.append(batch.positive_keys)
            shard_keys += batch.keys
            metadata += batch.metadata
            advance(len(batch))
        embedded = Embedded(
            name=name,
            embeddings={modality: torch.cat(parts) for modality, parts in embeddings.items()},
            items={modality: torch.cat(parts) for modality, parts in items.items()},
            keys=torch.cat(positive_keys),
            indices=_places(source, shard_keys),
        )
        return embedded, metadata

    @torch.no_grad()
    def _classify(
        self,
        embedded: Embedded,
        metadata: Sequence[Mapping[str, Any]],
        source: Source,
        task: ZeroShotTask,
    ) -> None:
        labels = [_label(sample, task.label) for sample in metadata]
        device = next(self.model.parameters()).device
        text = self.transforms["text"]
        prompts = {}
        for name, aliases in task.names(labels).items():
            tokens, mask = text.collate([text(line, None) for line in task.texts(aliases)])
            on_device = None if mask is None else mask.to(device)
            prompts[name] = self.model.embed("text", tokens.to(device), on_device).cpu()
        ends = frozenset((task.modality, "text"))
        self.results.zero_shots.append(
            score_zero_shot(
                embedded, task.modality, task.label, labels, task.prompts, prompts,
                self._is_trained(ends, source),
            )
        )  # fmt: skip


def _label(metadata: Mapping[str, Any], key: str) -> str:
    if not isinstance(metadata.get(key), str):
        raise ValueError(
            f"zero_shot needs a text under '{key}' in every sample's JSON; "
            f"found {metadata.get(key)!r} among {sorted(metadata)}"
        )
    return str(metadata[key])


def _places(source: Source, keys: Sequence[str]) -> Tensor:
    """Indices of the samples of ``keys``, which are in the source's order; bad ones are absent."""
    walk = iter(range(len(source)))
    return torch.tensor([next(i for i in walk if source.place(i).key == key) for key in keys])


def _lengths(source: Source, indices: Tensor) -> Tensor:
    """``[N, 2]``: seconds of every sound and letters of every text."""
    if not {"audio", "text"} <= set(source.modalities):
        raise ValueError(
            "duration_baseline compares the lengths of sounds and texts: the source needs "
            f"audio and text, it has {', '.join(source.modalities)}"
        )
    lengths = []
    for index in indices.tolist():
        values = source.decode(index, None, ("audio", "text")).values
        sound, text = values["audio"], values["text"]
        assert isinstance(sound, Signal)
        lengths.append([sound.samples.shape[-1] / sound.rate, len(str(text))])
    return torch.tensor(lengths, dtype=torch.float64)


def write(
    results: Results,
    sets: Mapping[str, EvaluationSet],
    folder: Path,
    cfg: DictConfig,
    facts: Sequence[tuple[str, str]],
) -> Path:
    """Leaves ``metrics.json`` and ``report.html`` in ``folder``.

    Returns:
        The report's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "metrics.csv"
    rows = list(csv.DictReader(log.open(newline=""))) if log.exists() else []
    page = Page(
        name=str(cfg.name),
        command=command(),
        created=f"{datetime.datetime.now():%d %B %Y, %H:%M}",
        facts=list(facts),
        results=results,
        curves=curves(rows),
        galleries=galleries(results, sets),
        config=OmegaConf.to_yaml(cfg, resolve=True),
    )
    report = folder / "report.html"
    report.write_text(render(page), encoding="utf-8")
    # Last, and in one step: who finds it finds a finished run.
    written = folder / ".metrics.json.tmp"
    written.write_text(json.dumps(results.metrics(), indent=2) + "\n")
    written.replace(folder / "metrics.json")
    return report


def facts(model: EmbeddingModel, results: Results) -> list[tuple[str, str]]:
    """What the report says at its top."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    samples = sum(info.samples for info in results.sets.values())
    return [
        ("modalities", ", ".join(model.towers)),
        ("parameters", f"{parameters / 1e6:.1f} M"),
        ("embedding", f"{model.embed_dim} dimensions"),
        ("held-out samples", f"{samples:,}"),
    ]


def command() -> str:
    """The command line of this process, to be typed again."""
    program = Path(sys.argv[0])
    words = [program.name, *sys.argv[1:]]
    if program.suffix == ".py":
        words[:1] = ["python", os.path.relpath(program)]
    return shlex.join(words)


def galleries(results: Results, sets: Mapping[str, EvaluationSet]) -> list[Gallery]:
    """The examples of every retrieval, drawn from the sets' decoded samples."""
    drawn = []
    for result in results.retrievals:
        source = sets[result.set].source
        if result.examples and source is not None:
            decode = functools.cache(functools.partial(source.decode, draw=None))

            def show(modality: str, index: int, decode: Any = decode) -> Markup:
                value = decode(index).values[modality]
                if isinstance(value, Signal):
                    return draw(modality, value.samples, value.rate)
                return draw(modality, value)

            def caption(index: int, decode: Any = decode) -> str:
                return _caption(decode(index))

            drawn.append(make_gallery(result, show, caption))
    return drawn


def _caption(sample: Decoded) -> str:
    found = (sample.metadata.get(key) for key in ("name", "label"))
    return next((name for name in found if isinstance(name, str)), sample.key)
