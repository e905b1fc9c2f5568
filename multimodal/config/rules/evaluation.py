"""Rules of the evaluation: the modalities and sets that its tasks need exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem, did_you_mean
from multimodal.config.tree import at, block

Tree = dict[str, Any]


def _sets(tree: Tree) -> Iterator[tuple[str, Tree, Tree]]:
    """Path, content and modalities of every evaluation set that has a source."""
    for name, entry in block(tree, "evaluation.sets").items():
        carried = block(entry, "source.modalities") if isinstance(entry, dict) else {}
        if carried:
            yield f"evaluation.sets.{name}", entry, carried


def _tasks(where: str, entry: Tree, kind: str) -> Iterator[tuple[str, Tree]]:
    tasks = entry.get(kind)
    for index, task in enumerate(tasks if isinstance(tasks, list) else ()):
        if isinstance(task, dict):
            yield f"{where}.{kind}[{index}]", task


def modalities_of_tasks(tree: Tree) -> Iterator[ConfigProblem]:
    """Probes and composed queries ask for modalities that their set, and its training, carry."""
    for where, entry, carried in _sets(tree):
        for place, task in _tasks(where, entry, "probes"):
            modality = task.get("modality")
            sources = {"the set's source": carried}
            for name in ("train", "validation"):
                sources[f"{place}.{name}"] = block(task, f"{name}.modalities")
            for source, known in sources.items():
                if isinstance(modality, str) and known and modality not in known:
                    guess = did_you_mean(modality, known)
                    yield ConfigProblem(
                        f"{place}.modality", f"{source} has no '{modality}'; {guess}"
                    )
        for place, task in _tasks(where, entry, "composed"):
            asked = [*block(task, "query"), task.get("gallery")]
            for modality in asked:
                if isinstance(modality, str) and modality not in carried:
                    guess = did_you_mean(modality, carried)
                    yield ConfigProblem(place, f"the set's source has no '{modality}'; {guess}")


def sets_in_training(tree: Tree) -> Iterator[ConfigProblem]:
    """The sets evaluated in training exist, and an interval is a number of at least 1."""
    sets = block(tree, "evaluation.sets")
    names = at(tree, "evaluation.in_training")
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and name not in sets:
            yield ConfigProblem(
                "evaluation.in_training", f"no set '{name}'; {did_you_mean(name, sets)}"
            )
    every = at(tree, "evaluation.every")
    if isinstance(every, int) and not isinstance(every, bool) and every < 1:
        yield ConfigProblem(
            "evaluation.every", f"given {every}, expected at least 1, or null for never"
        )
