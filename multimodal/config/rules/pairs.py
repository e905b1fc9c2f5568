"""Rules across fields, one function each: from a configuration's plain tree to its problems.

They read only the YAML and import nothing, so that they are reported even if an import fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.annotations import mismatches
from multimodal.config.problems import ConfigProblem, did_you_mean
from multimodal.config.schema import Modality
from multimodal.config.tree import at, block
from multimodal.core.names.modalities import TEACHER

Tree = dict[str, Any]


def _blocks(tree: Tree, path: str) -> list[tuple[str, Tree]]:
    """Name and content of the blocks under ``path``; a null entry is one that was taken out."""
    return [(name, item) for name, item in block(tree, path).items() if isinstance(item, dict)]


def _sides(pair: Tree) -> list[tuple[str, str]]:
    """Side and modality; a side that is a joint embedding has several."""
    sides = ((side, pair.get(side)) for side in ("anchor", "other"))
    return [
        (side, modality)
        for side, named in sides
        for modality in (named if isinstance(named, list) else [named])
        if isinstance(modality, str)
    ]


def _tower(tree: Tree, modality: str) -> Tree:
    """The tower of a modality, which may share another's by naming it."""
    towers = block(tree, "model.towers")
    tower = towers.get(modality)
    tower = towers.get(tower) if isinstance(tower, str) else tower
    return tower if isinstance(tower, dict) else {}


def _names(listed: Any) -> list[str]:
    return [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []


def towers_of_pairs(tree: Tree) -> Iterator[ConfigProblem]:
    """Both modalities of a pair have a tower."""
    towers = block(tree, "model.towers")
    for name, pair in _blocks(tree, "pairs"):
        for side, modality in _sides(pair):
            taught = modality.startswith(TEACHER) and modality not in towers
            if towers and modality not in towers and not taught:
                where = f"pairs.{name}.{side}"
                yield ConfigProblem(
                    where, f"no tower '{modality}'; {did_you_mean(modality, towers)}"
                )


def sources_of_pairs(tree: Tree) -> Iterator[ConfigProblem]:
    """A pair's sources exist, and some source of it carries both of its modalities together."""
    sources = dict(_blocks(tree, "data.sources"))
    known = {*sources, *block(tree, "data.val_sources")}
    for name, pair in _blocks(tree, "pairs"):
        listed = _names(pair.get("sources"))
        for source in listed:
            if source not in known:
                where = f"pairs.{name}.sources"
                yield ConfigProblem(where, f"no source '{source}'; {did_you_mean(source, known)}")
        own = {source: sources[source] for source in listed or sources if source in sources}
        if own and not any(_carries(tree, source, pair) for source in own.values()):
            held = "; ".join(f"{s} has {', '.join(block(own[s], 'modalities'))}" for s in own)
            both = " and ".join(modality for _, modality in _sides(pair))
            yield ConfigProblem(f"pairs.{name}", f"no source carries {both} together: {held}")


def pairs_of_sources(tree: Tree) -> Iterator[ConfigProblem]:
    """Every source feeds at least one pair, or its batches would teach nothing."""
    pairs = [pair for _, pair in _blocks(tree, "pairs")]
    for path in ("data.sources", "data.val_sources"):
        for name, source in _blocks(tree, path):
            own = [pair for pair in pairs if name in (_names(pair.get("sources")) or [name])]
            if pairs and not any(_carries(tree, source, pair) for pair in own):
                held = ", ".join(block(source, "modalities")) or "nothing"
                yield ConfigProblem(
                    f"{path}.{name}",
                    f"no pair relates two of its modalities (it has {held}); add a pair, or "
                    f"remove the source (~{path}.{name})",
                )


def _carries(tree: Tree, source: Tree, pair: Tree) -> bool:
    """Whether both sides of a pair are in a source; an unknown name, reported elsewhere, may be."""
    sides = {modality for _, modality in _sides(pair)}
    carried = block(source, "modalities").keys()
    unknown = (sides - block(tree, "model.towers").keys()) | (
        carried - block(tree, "data.transforms").keys()
    )
    return bool(unknown) or sides <= carried


def _sources(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """Path and content of every source: to train on, to validate on, to evaluate."""
    for path in ("data.sources", "data.val_sources"):
        yield from ((f"{path}.{name}", source) for name, source in _blocks(tree, path))
    for name, entry in _blocks(tree, "evaluation.sets"):
        if isinstance(entry.get("source"), dict):
            yield f"evaluation.sets.{name}.source", entry["source"]


def modalities_of_sources(tree: Tree) -> Iterator[ConfigProblem]:
    """A source says of each modality where it is read from."""
    for where, source in _sources(tree):
        annotation = dict[str, Modality]
        yield from mismatches(source.get("modalities", {}), annotation, f"{where}.modalities")


def transforms_of_sources(tree: Tree) -> Iterator[ConfigProblem]:
    """Every modality of a source has a transform, also in the evaluation sets."""
    transforms = block(tree, "data.transforms")
    for where, source in _sources(tree):
        for modality in block(source, "modalities"):
            if transforms and modality not in transforms:
                yield ConfigProblem(
                    f"{where}.modalities.{modality}",
                    f"no transform for '{modality}' under data.transforms; "
                    f"{did_you_mean(modality, transforms)}",
                )


def shared_towers(tree: Tree) -> Iterator[ConfigProblem]:
    """A tower given by another modality's name shares one that is there."""
    towers = block(tree, "model.towers")
    for name, other in towers.items():
        if isinstance(other, str) and not isinstance(towers.get(other), dict):
            own = [known for known, tower in towers.items() if isinstance(tower, dict)]
            where = f"model.towers.{name}"
            yield ConfigProblem(where, f"no tower '{other}' to share; {did_you_mean(other, own)}")


def one_embed_dim(tree: Tree) -> Iterator[ConfigProblem]:
    """All towers end in one space."""
    dims = {
        name: at(tower, "head.embed_dim")
        for name, tower in _blocks(tree, "model.towers")
        if isinstance(at(tower, "head.embed_dim"), int)
    }
    if len(set(dims.values())) > 1:
        shown = ", ".join(f"{name} {dim}" for name, dim in dims.items())
        yield ConfigProblem(
            "model.towers",
            f"the towers' embed_dim must be equal, given {shown}; "
            "`head.embed_dim: ${embed_dim}` takes the one at the root",
        )


def something_to_learn(tree: Tree) -> Iterator[ConfigProblem]:
    """No pair of two frozen towers at a fixed temperature."""
    for name, pair in _blocks(tree, "pairs"):
        towers = [_tower(tree, modality) for _, modality in _sides(pair)]
        frozen = len(towers) == 2 and all(tower.get("frozen") is True for tower in towers)
        if frozen and at(pair, "logit_scale.learned") is False:
            both = " and ".join(modality for _, modality in _sides(pair))
            yield ConfigProblem(
                f"pairs.{name}",
                f"nothing to train: the towers {both} are frozen and the logit scale is fixed; set "
                "`frozen: false` on one, or remove the pair",
            )


def choices_of_pairs(tree: Tree) -> Iterator[ConfigProblem]:
    """Every pair has a loss, negatives and candidates: its own, or the experiment's."""
    for choice in ("loss", "negatives", "candidates"):
        if tree.get(choice) is not None:
            continue
        for name, pair in _blocks(tree, "pairs"):
            if pair.get(choice) is None:
                where = f"pairs.{name}.{choice}"
                yield ConfigProblem(where, f"neither the pair nor the root has a {choice}")


def prefixes_of_embeddings(tree: Tree) -> Iterator[ConfigProblem]:
    """``matryoshka.dims`` ascend and end with the whole width; each weight belongs to one."""
    dims, weights = at(tree, "matryoshka.dims"), at(tree, "matryoshka.weights")
    width = tree.get("embed_dim")
    if not isinstance(dims, list) or not all(isinstance(dim, int) for dim in dims):
        if weights is not None and dims is None:
            yield ConfigProblem("matryoshka.weights", "needs matryoshka.dims, one for each")
        return
    if not dims or dims[0] < 1 or dims != sorted(set(dims)) or dims[-1] != width:
        yield ConfigProblem(
            "matryoshka.dims",
            f"given {dims}, expected ascending widths that end in embed_dim={width}",
        )
    if isinstance(weights, list) and len(weights) != len(dims):
        yield ConfigProblem(
            "matryoshka.weights", f"given {len(weights)} numbers for the {len(dims)} of dims"
        )


def weight_or_repeat(tree: Tree) -> Iterator[ConfigProblem]:
    """Sources are interleaved by sizes and repeats, or all of them by weights."""
    sources = _blocks(tree, "data.sources")
    weighted = [name for name, source in sources if source.get("weight") is not None]
    for name, source in sources:
        where = f"data.sources.{name}"
        if name in weighted and source.get("repeat", 1.0) != 1.0:
            yield ConfigProblem(
                where, "has both weight and repeat; sources are mixed by one of them"
            )
        elif weighted and name not in weighted:
            others = ", ".join(weighted)
            yield ConfigProblem(
                where, f"has no weight, but {others} has; give all of them one, or none"
            )


def towers_of_anchor(tree: Tree) -> Iterator[ConfigProblem]:
    """The anchor's towers exist here too."""
    towers = block(tree, "model.towers")
    for name in _names(at(tree, "anchor.towers")):
        if towers and name not in towers:
            yield ConfigProblem("anchor.towers", f"no tower '{name}'; {did_you_mean(name, towers)}")


def modalities_of_evaluation(tree: Tree) -> Iterator[ConfigProblem]:
    """The evaluation asks for modalities that its sets carry."""
    for name, entry in _blocks(tree, "evaluation.sets"):
        where, carried = f"evaluation.sets.{name}", block(entry, "source.modalities")
        if not carried:
            continue
        retrieval, zero_shot = entry.get("retrieval"), entry.get("zero_shot")
        asked = [
            (f"{where}.retrieval[{index}]", modality)
            for index, pair in enumerate(retrieval if isinstance(retrieval, list) else ())
            for modality in _names(pair)
        ] + [
            (f"{where}.zero_shot[{index}].modality", task["modality"])
            for index, task in enumerate(zero_shot if isinstance(zero_shot, list) else ())
            if isinstance(task, dict) and isinstance(task.get("modality"), str)
        ]
        for place, modality in asked:
            if modality not in carried:
                yield ConfigProblem(
                    place,
                    f"the set's source has no '{modality}'; {did_you_mean(modality, carried)}",
                )
