"""Held-out evaluation of a model: embeds every configured set once, scores it, reports it.

Under a process group every rank has to call: each embeds and scores its share, and all get the same
metrics, equal to those of one process; the first rank writes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from multimodal.config import build, require_named
from multimodal.core import distributed
from multimodal.core.errors import UserError
from multimodal.data.settings import EvaluationData, LoaderSettings
from multimodal.data.source import Source
from multimodal.evaluation.benchmarks import compare, section, terminal_table
from multimodal.evaluation.evaluators.base import Embedded, EvaluationContext, Missing
from multimodal.evaluation.fusion import evaluate_tasks
from multimodal.evaluation.report import token_maps
from multimodal.evaluation.report.attention_examples import sections
from multimodal.evaluation.report.write import facts, write
from multimodal.evaluation.results import Results, SetInfo
from multimodal.evaluation.sets import EvaluationSet
from multimodal.evaluation.task_results import TaskResult, tasks_table
from multimodal.evaluation.terminal import print_table
from multimodal.evaluation.trained_pairs import Temperatures, TrainedPairs
from multimodal.inference.checkpoint.input_check import check_inputs
from multimodal.inference.embedded_source import EmbeddedSource
from multimodal.inference.embedder import Embedder
from multimodal.models.fusion_model import FusionModel
from multimodal.models.towers import EmbeddingModel

POOLED_ONLY = "compares one embedding of each input, and similarity=maxsim has one of each token"


class EvaluationError(UserError, ValueError):
    """A set that cannot be evaluated as it is configured, or embeddings that are not finite."""


def evaluate_run(
    model: EmbeddingModel,
    cfg: DictConfig,
    folder: Path,
    trained: TrainedPairs,
    temperatures: Temperatures | None = None,
    weights: str = "",
) -> Results:
    """Evaluates ``model`` on the sets of ``cfg.evaluation`` and writes the results to ``folder``.

    Prints the table; writes ``metrics.json``, ``report.html`` and, of a fusion, what it attended to
    under ``attention/``; on the first rank only.

    Args:
        model: its towers, on the device to evaluate on.
        cfg: the run's configuration.
        folder: the run's; training curves are read from its ``metrics.csv`` if there is one.
        trained: the pairs that were trained together (`trained_pairs`).
        temperatures: of those pairs, where known.
        weights: which ones the model has, for the report: ``step 750 of 1,000``; empty: unknown.

    Raises:
        ValueError: if a set cannot be evaluated as configured, naming it.
    """
    sets = build_sets(cfg)
    data = evaluation_data(cfg)
    check_inputs(model, data.transforms)
    results = evaluate(model, sets, data, trained, temperatures)
    if distributed.rank() == 0:
        compared = compare(
            {name: entry.published for name, entry in sets.items()}, results.metrics()
        )
        more = []
        if compared:
            papers = {n: entry.published.paper for n, entry in sets.items() if entry.published}
            more.append(section(compared, papers))
        if isinstance(model, FusionModel):
            more += sections(model, sets, data.transforms, folder / "attention")
        more += token_maps.sections(model, sets, data.transforms)
        about = [*facts(model, results), *([("weights", weights)] if weights else [])]
        report = write(results, sets, folder, cfg, about, more)
        tasks = results.of(TaskResult)
        tables = [results.table(), tasks_table(tasks) if tasks else None]
        for table in (*tables, terminal_table(compared) if compared else None):
            if table is not None:
                print_table(table)
        print(f"report: {report}")
    return results


def evaluate_metrics(
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
    transforms = build(cfg, "data", "transforms", convert="all")
    loading = LoaderSettings(num_workers=cfg.data.num_workers)
    return EvaluationData(transforms, cfg.data.eval_batch_size, loading)


def build_sets(cfg: DictConfig, names: Sequence[str] | None = None) -> dict[str, EvaluationSet]:
    """The sets of ``cfg.evaluation``, or those of ``names``; those set to null are left out.

    Raises:
        ConfigError: if shards of theirs are at an address that only a file names.
    """
    sets = {}
    for name, node in cfg.evaluation.sets.items():
        if node is not None and (names is None or name in names):
            blocks = build(cfg, "evaluation", "sets", str(name), convert="all")
            sets[str(name)] = made = EvaluationSet.from_blocks(blocks)
            probes = [source for task in made.probes for source in (task.train, task.validation)]
            for source in (made.source, *probes):
                # A manifest may be here, and name shards elsewhere.
                for folder in () if source is None else source.folders:
                    require_named(cfg, f"evaluation.sets.{name}", folder)
    return sets


def evaluate(
    model: EmbeddingModel,
    sets: Mapping[str, EvaluationSet],
    data: EvaluationData,
    trained: TrainedPairs,
    temperatures: Temperatures | None = None,
    quiet: bool = False,
) -> Results:
    """Embeds each set once and scores all of its tasks.

    Tasks that lack a tower or samples are listed in the results as not scored.

    Args:
        model: its towers, on the device to evaluate on; its mode is restored.
        sets: by name.
        data: the transforms, and how samples become batches.
        trained: pair -> names of the manifests it was trained on, or None for any.
        temperatures: of the trained pairs, for the diagnostics.
        quiet: shows no progress.

    Raises:
        ValueError: if a set asks for what its source does not have, or on NaN embeddings.
    """
    embedder = Embedder(model, data)
    run = _Evaluation(embedder, trained, temperatures or {})
    modes = {module: module.training for module in model.modules()}
    model.eval()
    columns = (TextColumn("evaluating {task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    hidden = quiet or distributed.rank() > 0 or not console.is_terminal
    try:
        with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
            for name, entry in sets.items():
                total = -(-len(entry.source or ()) // distributed.world_size())
                task = progress.add_task(name, total=total)
                try:
                    run.one_set(name, entry, functools.partial(progress.advance, task))
                except ValueError as error:
                    raise EvaluationError(f"evaluation set '{name}': {error}") from error
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
        """Embeds and scores one set; ``advance`` is called with the number of finished samples."""
        if entry.source is None:
            note = f": {entry.description}" if entry.description else ""
            self._miss(name, "samples", f"no sample source{note}")
            return
        source: Source = entry.source
        model = self.embedder.model
        if isinstance(model, FusionModel):
            self.results.sets[name] = SetInfo(name, source.split, len(source), entry.description)
            on_progress = _ignore if entry.asks_more() else advance
            self.results.outcomes += evaluate_tasks(
                model, name, source, self.embedder.data, on_progress
            )
            if not entry.asks_more():
                return
        questions = entry.questions(model.joint.joined(source.modalities))
        absent = self.embedder.missing(source.modalities)
        for modality in absent:
            self._miss(name, modality, "the model has no tower for it")
        modalities = model.joint.joined(m for m in source.modalities if m not in absent)
        if not modalities:
            return
        rows = self.embedder.source(source, modalities, advance)
        samples = rows.samples()
        unread = len(source) - len(samples)
        if unread:
            self._miss(name, f"{unread} of {len(source)} samples", "cannot be read: see the log")
        self.results.sets[name] = SetInfo(name, source.split, len(samples), entry.description)
        context = self._context(name, source, rows, samples)
        for question in questions:
            if model.similarity.per_token and not getattr(question, "reads_tokens", False):
                self._miss(name, type(question).__name__, POOLED_ONLY)
                continue
            for answer in question.evaluate(context):
                self.results.add(answer)

    def _context(
        self, name: str, source: Source, rows: EmbeddedSource, samples: EmbeddedSource
    ) -> EvaluationContext:
        def embedded(of: EmbeddedSource) -> Embedded:
            places = of.indices + len(source) * of.captions
            return Embedded(name, of.embeddings, of.items, of.keys, places)

        def is_trained(one: str, other: str) -> bool:
            manifests = self.trained.get(frozenset((one, other)), frozenset())
            return manifests is None or source.name in manifests

        return EvaluationContext(
            embedded(samples),
            embedded(rows),
            samples.metadata,
            source,
            self.embedder,
            is_trained,
            self.temperatures,
            self.embedder.model.similarity,
        )

    def _miss(self, name: str, what: str, reason: str) -> None:
        self.results.add(Missing(name, what, reason))


def _ignore(count: int) -> None:
    pass
