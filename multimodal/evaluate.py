"""Held-out evaluation of a model: embed every configured set once, score it, report it.

Under a process group every rank calls: each embeds and scores its share, and all get the same
figures, equal to those of one process; the first one writes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor

from multimodal import distributed
from multimodal.config.instantiating import instantiate
from multimodal.data.decode import Signal
from multimodal.data.settings import EvaluationData, LoaderSettings
from multimodal.data.source import Source
from multimodal.embedding import EmbeddedSource, Embedder
from multimodal.evaluate_fusion import evaluate_tasks
from multimodal.evaluation.probe import Samples, probe
from multimodal.evaluation.results import Missing, ProbeResult, Results, SetInfo
from multimodal.evaluation.scoring import (
    Embedded,
    compose,
    diagnose,
    draw_map,
    score_retrieval,
    score_zero_shot,
)
from multimodal.evaluation.sets import EvaluationSet, ProbeTask, ZeroShotTask
from multimodal.evaluation.tasks import tasks_table
from multimodal.fusion_gallery import sections
from multimodal.fusion_model import FusionModel
from multimodal.models import EmbeddingModel
from multimodal.reporting import facts, name_of, write
from multimodal.trained_pairs import Temperatures, TrainedPairs


def evaluate_run(
    model: EmbeddingModel,
    cfg: DictConfig,
    folder: Path,
    trained: TrainedPairs,
    temperatures: Temperatures | None = None,
) -> Results:
    """Evaluates ``model`` on the sets of ``cfg.evaluation`` and leaves the results in ``folder``.

    Prints the table; writes ``metrics.json``, ``report.html`` and, of a fusion, what it attended to
    under ``attention/``; on the first rank only.

    Args:
        model: its towers, on the device to evaluate on.
        cfg: the run's configuration.
        folder: the run's; training curves are read from its ``metrics.csv`` if there is one.
        trained: the pairs that were trained together (:func:`trained_pairs`).
        temperatures: of those pairs, where known.

    Raises:
        ValueError: If a set cannot be evaluated as configured, naming it.
    """
    sets = build_sets(cfg)
    data = evaluation_data(cfg)
    results = evaluate(model, sets, data, trained, temperatures)
    if distributed.rank() == 0:
        more = []
        if isinstance(model, FusionModel):
            more = sections(model, sets, data.transforms, folder / "attention")
        report = write(results, sets, folder, cfg, facts(model, results), more)
        if results.retrievals or results.zero_shots or results.probes or results.missing:
            Console().print(results.table())
        if results.tasks:
            Console().print(tasks_table(results.tasks))
        print(f"report: {report}")
    return results


def evaluate_quietly(
    model: EmbeddingModel, cfg: DictConfig, trained: TrainedPairs, temperatures: Temperatures
) -> dict[str, float]:
    """The figures of a model in training as one flat table, ``SET/TASK/METRIC`` -> value.

    The sets are those of ``cfg.evaluation.in_training``, or all; nothing is drawn or written.
    """
    sets = build_sets(cfg, cfg.evaluation.get("in_training"))
    sets = {name: replace(entry, gallery=0, map=None, probes=()) for name, entry in sets.items()}
    results = evaluate(model, sets, evaluation_data(cfg), trained, temperatures, quiet=True)
    return results.flat()


def evaluation_data(cfg: DictConfig) -> EvaluationData:
    """The transforms, batch size and workers of a run's evaluation."""
    transforms = instantiate(cfg.data.transforms, _convert_="all")
    loading = LoaderSettings(num_workers=cfg.data.num_workers)
    return EvaluationData(transforms, cfg.data.eval_batch_size, loading)


def build_sets(cfg: DictConfig, names: Sequence[str] | None = None) -> dict[str, EvaluationSet]:
    """The sets of ``cfg.evaluation``, or those of ``names``; those set to null are left out."""
    return {
        str(name): EvaluationSet.from_blocks(instantiate(node, _convert_="all"))
        for name, node in cfg.evaluation.sets.items()
        if node is not None and (names is None or name in names)
    }


def evaluate(
    model: EmbeddingModel,
    sets: Mapping[str, EvaluationSet],
    data: EvaluationData,
    trained: TrainedPairs,
    temperatures: Temperatures | None = None,
    quiet: bool = False,
) -> Results:
    """Embeds each set once and scores all that is asked of it.

    Whatever cannot be scored, for want of a tower or of samples, is listed in the results.

    Args:
        model: its towers, on the device to evaluate on; left in the mode it came in.
        sets: by name.
        data: the transforms, and how samples become batches.
        trained: pair -> names of the manifests it was trained on, or None for any.
        temperatures: of the trained pairs, for the diagnostics.
        quiet: shows no progress.

    Raises:
        ValueError: If a set asks for what its source does not have, or on NaN embeddings.
    """
    embedder = Embedder(model, data)
    run = _Evaluation(embedder, trained, temperatures or {})
    modes = {module: module.training for module in model.modules()}
    model.eval()
    columns = (TextColumn("evaluating {task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True, quiet=quiet or distributed.rank() > 0)
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            for name, entry in sets.items():
                total = -(-len(entry.source or ()) // distributed.world_size())
                task = progress.add_task(name, total=total)
                try:
                    run.one_set(name, entry, functools.partial(progress.advance, task))
                except ValueError as error:
                    raise ValueError(f"evaluation set '{name}': {error}") from error
                progress.remove_task(task)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return run.results


@dataclass(slots=True)
class _Evaluation:
    embedder: Embedder
    trained: TrainedPairs
    temperatures: Temperatures
    results: Results = field(default_factory=Results)

    def one_set(self, name: str, entry: EvaluationSet, advance: Callable[[int], None]) -> None:
        """Embeds and scores one set; ``advance`` is told how many samples are done."""
        if entry.source is None:
            note = f": {entry.description}" if entry.description else ""
            self._miss(name, "samples", f"no sample source{note}")
            return
        source: Source = entry.source
        model = self.embedder.model
        if isinstance(model, FusionModel):
            self.results.sets[name] = SetInfo(name, source.split, len(source), entry.description)
            more = any((entry.retrieval, entry.zero_shot, entry.composed, entry.probes, entry.map))
            on_progress = _ignore if more else advance
            self.results.tasks += evaluate_tasks(
                model, name, source, self.embedder.data, on_progress
            )
            if not more:
                return
        pairs = entry.pairs(source.modalities)
        absent = self.embedder.missing(source.modalities)
        for modality in absent:
            self._miss(name, modality, "the model has no tower for it")
        modalities = [modality for modality in source.modalities if modality not in absent]
        if not modalities:
            return
        rows = self.embedder.source(source, modalities, advance)
        samples = rows.samples()
        unread = len(source) - len(samples)
        if unread:
            self._miss(name, f"{unread} of {len(source)} samples", "cannot be read: see the log")
        embedded = Embedded(name, samples.embeddings, samples.items, samples.keys, samples.indices)
        self.results.sets[name] = SetInfo(name, source.split, len(samples), entry.description)
        pairs = [pair for pair in pairs if not set(pair) & set(absent)]
        captioned = embedded
        if source.decoder.kept is not None:  # every caption is asked for, and an answer
            places = rows.indices + len(source) * rows.captions
            captioned = Embedded(name, rows.embeddings, rows.items, rows.keys, places)
        if entry.duration_baseline:
            captioned = replace(captioned, lengths=_lengths(source, captioned.indices))
        self._retrieve(captioned, pairs, source, entry)
        for task in entry.zero_shot:
            if self.embedder.missing(["text"]):
                self._miss(name, f"zero-shot {task.label}", "the model has no tower for text")
            elif task.modality in modalities:
                self._classify(embedded, samples.metadata, source, task)
        self.results.diagnostics.append(diagnose(embedded, self.temperatures))
        for probed in entry.probes:
            if probed.modality in modalities:
                self._probe(embedded, samples.metadata, probed)
        if entry.map is not None:
            self._map(embedded, samples, source, entry.map.samples, entry.map.label)

    def _miss(self, name: str, what: str, reason: str) -> None:
        self.results.missing.append(Missing(name, what, reason))

    def _is_trained(self, ends: frozenset[str], source: Source) -> bool:
        manifests = self.trained.get(ends, frozenset())
        return manifests is None or source.name in manifests

    def _retrieve(
        self,
        embedded: Embedded,
        pairs: Sequence[tuple[str, str]],
        source: Source,
        entry: EvaluationSet,
    ) -> None:
        drawn: set[frozenset[str]] = set()
        for query, gallery in pairs:
            ends = frozenset((query, gallery))
            trained = self._is_trained(ends, source)
            self.results.retrievals.append(
                score_retrieval(
                    embedded, query, gallery, trained, entry.gallery, matrix=ends not in drawn
                )
            )
            drawn.add(ends)
        for task in entry.composed:
            if {*task.query, task.gallery} <= embedded.embeddings.keys():
                trained = all(
                    self._is_trained(frozenset((part, task.gallery)), source) for part in task.query
                )
                composed = compose(embedded, task)
                self.results.retrievals.append(
                    score_retrieval(
                        composed, task.name, task.gallery, trained, entry.gallery, matrix=False
                    )
                )

    def _classify(
        self,
        embedded: Embedded,
        metadata: Sequence[Mapping[str, Any]],
        source: Source,
        task: ZeroShotTask,
    ) -> None:
        labels = [_labels(sample, task.label) for sample in metadata]
        present = [name for names in labels for name in names]
        prompts = {
            name: self.embedder.values("text", task.texts(aliases))
            for name, aliases in task.names(present).items()
        }
        trained = self._is_trained(frozenset((task.modality, "text")), source)
        self.results.zero_shots.append(score_zero_shot(embedded, task, labels, prompts, trained))

    def _probe(
        self, embedded: Embedded, metadata: Sequence[Mapping[str, Any]], task: ProbeTask
    ) -> None:
        names: dict[str, int] = {}

        def samples(vectors: Tensor, described: Sequence[Mapping[str, Any]]) -> Samples:
            labels = [_label(sample, task.label) for sample in described]
            numbers = [names.setdefault(label, len(names)) for label in labels]
            return Samples(vectors.numpy(), torch.tensor(numbers).numpy())

        def embed(source: Source) -> Samples:
            found = self.embedder.source(source, [task.modality])
            return samples(found.embeddings[task.modality], found.metadata)

        train = embed(task.train)
        validation = None if task.validation is None else embed(task.validation)
        test = samples(embedded.embeddings[task.modality], metadata)
        # A matter of seconds on some thousand vectors: every rank does the same.
        scores = probe(train, test, validation, task.shots, task.draws)
        self.results.probes.append(ProbeResult(embedded.name, task.modality, task.label, scores))

    def _map(
        self,
        embedded: Embedded,
        samples: EmbeddedSource,
        source: Source,
        count: int,
        label: str | None,
    ) -> None:
        if distributed.rank() > 0:
            return
        labels = [_label(sample, label) for sample in samples.metadata] if label else []
        captions = [
            name_of(sample) or source.place(index).key
            for sample, index in zip(samples.metadata, samples.indices.tolist(), strict=True)
        ]
        self.results.maps.append(draw_map(embedded, count, labels, captions))


def _ignore(count: int) -> None:
    pass


def _label(metadata: Mapping[str, Any], key: str) -> str:
    labels = _labels(metadata, key)
    if len(labels) > 1:
        raise ValueError(f"expected one label under '{key}' in a sample's JSON; found {labels}")
    return labels[0]


def _labels(metadata: Mapping[str, Any], key: str) -> list[str]:
    found = metadata.get(key)
    labels = [found] if isinstance(found, str) else found
    if not isinstance(labels, list) or not labels or not all(isinstance(x, str) for x in labels):
        raise ValueError(
            f"classification needs a text, or a list of texts, under '{key}' in every sample's "
            f"JSON; found {found!r} among {sorted(metadata)}"
        )
    return labels


def _lengths(source: Source, indices: Tensor) -> Tensor:
    """``[N, 2]``: seconds of every sound and letters of every text."""
    if not {"audio", "text"} <= set(source.modalities):
        raise ValueError(
            "duration_baseline compares the lengths of sounds and texts: the source needs "
            f"audio and text, it has {', '.join(source.modalities)}"
        )
    lengths = []
    for index in indices.tolist():
        caption, place = divmod(index, len(source))
        values = source.decode(place, None, ("audio", "text"), caption=caption).values
        sound, text = values["audio"], values["text"]
        assert isinstance(sound, Signal)
        lengths.append([sound.samples.shape[-1] / sound.rate, len(str(text))])
    return torch.tensor(lengths, dtype=torch.float64)
