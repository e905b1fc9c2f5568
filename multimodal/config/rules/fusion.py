"""Rules for fusion models: tasks, their targets, and modalities that may be missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem, did_you_mean
from multimodal.config.tree import at, block

Tree = dict[str, Any]


def _tasks(tree: Tree) -> dict[str, Tree]:
    return {name: task for name, task in block(tree, "tasks").items() if isinstance(task, dict)}


def _fused(tree: Tree) -> list[str]:
    """The modalities that the fusion reads: those named, or all towers."""
    named = at(tree, "model.fused")
    if isinstance(named, list):
        return [name for name in named if isinstance(name, str)]
    return list(block(tree, "model.towers"))


def _sources(tree: Tree) -> Iterator[tuple[str, Tree]]:
    for path in ("data.sources", "data.val_sources"):
        for name, source in block(tree, path).items():
            if isinstance(source, dict):
                yield f"{path}.{name}", source


def tasks_or_pairs(tree: Tree) -> Iterator[ConfigProblem]:
    """There is something to learn, and something to learn it from."""
    pairs = tree.get("pairs")
    if isinstance(tree.get("fusion"), dict):
        if not _tasks(tree) and not pairs:
            yield ConfigProblem(
                "tasks", "nothing to learn: the fusion has no task, and there are no pairs"
            )
    elif _tasks(tree):
        yield ConfigProblem(
            "fusion", "the tasks need a fusion to read from; choose fusion=cross_attention"
        )
    elif pairs == {}:
        yield ConfigProblem("pairs", "nothing to learn: there are neither pairs nor tasks")


def targets_of_tasks(tree: Tree) -> Iterator[ConfigProblem]:
    """Every task's target is read by some source, and is not an input of the model."""
    sources = [source for where, source in _sources(tree) if where.startswith("data.sources")]
    carried = {name for source in sources for name in block(source, "modalities")}
    for name, task in _tasks(tree).items():
        target, where = task.get("target"), f"tasks.{name}.target"
        if not isinstance(target, str) or not carried:
            continue
        if target not in carried:
            yield ConfigProblem(where, f"no source has '{target}'; {did_you_mean(target, carried)}")
        elif target in block(tree, "model.towers"):
            yield ConfigProblem(
                where, f"'{target}' has a tower: the target would be an input of the model"
            )


def fused_modalities(tree: Tree) -> Iterator[ConfigProblem]:
    """Every modality that the fusion reads or queries with, and that tasks compare, has a tower."""
    towers = block(tree, "model.towers")
    if not isinstance(tree.get("fusion"), dict) or not towers:
        return
    fused = _fused(tree)
    for name in fused:
        if name not in towers:
            yield ConfigProblem("model.fused", f"no tower '{name}'; {did_you_mean(name, towers)}")
    query = at(tree, "fusion.query")
    if isinstance(query, str) and query not in fused:
        yield ConfigProblem("fusion.query", f"'{query}' is not fused; {did_you_mean(query, fused)}")
    for name, task in _tasks(tree).items():
        for side in ("first", "second"):
            modality = task.get(side)
            if isinstance(modality, str) and modality not in fused:
                yield ConfigProblem(
                    f"tasks.{name}.{side}",
                    f"'{modality}' is not fused; {did_you_mean(modality, fused)}",
                )


def optional_modalities(tree: Tree) -> Iterator[ConfigProblem]:
    """Only a fusion can miss a modality: a pair compares both of its modalities."""
    paired = {
        side: name
        for name, pair in block(tree, "pairs").items()
        if isinstance(pair, dict)
        for named in (pair.get("anchor"), pair.get("other"))
        for side in (named if isinstance(named, list) else [named])
        if isinstance(side, str)
    }
    for where, source in _sources(tree):
        for modality, entry in block(source, "modalities").items():
            if isinstance(entry, dict) and entry.get("optional") is True and modality in paired:
                yield ConfigProblem(
                    f"{where}.modalities.{modality}.optional",
                    f"the pair '{paired[modality]}' needs it: it cannot be optional",
                )
    if paired and isinstance(dropout := at(tree, "model.modality_dropout"), float) and dropout > 0:
        yield ConfigProblem(
            "model.modality_dropout",
            f"given {dropout}, but the pairs compare modalities: set it to 0.0",
        )


def one_pass(tree: Tree) -> Iterator[ConfigProblem]:
    """A fusion encodes a batch in one pass, from its inputs, and its pairs have no queue."""
    if not isinstance(tree.get("fusion"), dict):
        return
    if tree.get("micro_batch_size") is not None:
        yield ConfigProblem(
            "micro_batch_size",
            "a fusion encodes its batch at once: leave it null, and take a smaller batch with "
            "trainer.accumulate_grad_batches",
        )
    if at(tree, "data.cache_frozen") is True:
        yield ConfigProblem(
            "data.cache_frozen", "a fusion reads tokens, which are not cached: false"
        )
    queue = "multimodal.objectives.Queue"
    for name, pair in block(tree, "pairs").items():
        own = pair.get("candidates") if isinstance(pair, dict) else None
        if at(own or tree.get("candidates"), "_target_") == queue:
            yield ConfigProblem(
                f"pairs.{name}",
                "queues are for contrastive runs; beside a fusion take candidates=all_ranks",
            )


def captions_see_no_later_words(tree: Tree) -> Iterator[ConfigProblem]:
    """A predicted text is not fused, and its tower is causal."""
    for name, task in _tasks(tree).items():
        if not str(task.get("_target_", "")).endswith(".Captioning"):
            continue
        text = task.get("text", "text")
        if text in _fused(tree):
            yield ConfigProblem(
                f"tasks.{name}",
                f"the fusion reads '{text}', which is the text to predict; leave it out of "
                "model.fused",
            )
        if at(tree, f"model.towers.{text}.encoder.trunk.causal") is False:
            yield ConfigProblem(
                f"model.towers.{text}.encoder.trunk.causal",
                "given false, but captioning needs a causal text tower: true",
            )
