"""What the programs share: a checkpoint as an embedder, a table as an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from multimodal.config import build
from multimodal.data.settings import EvaluationData
from multimodal.data.source import Source
from multimodal.embedding import Embedder
from multimodal.models import EmbeddingKind, EmbeddingModel
from multimodal.search.index import Index, Kind
from multimodal.search.items import FolderItems, Items, SourceItems
from multimodal.search.table import Table, check_fit, read_table


def embedder_of(
    model: EmbeddingModel,
    run_cfg: DictConfig,
    device: str | None,
    batch_size: int = 64,
    kind: EmbeddingKind = "normalized",
) -> Embedder:
    """The model of a run with the run's transforms, on ``device`` or a GPU where there is one."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    transforms = {
        str(name): build(run_cfg, "data", "transforms", str(name), convert="all")
        for name in run_cfg.data.transforms
        if name in model.towers
    }
    return Embedder(model.to(device).eval(), EvaluationData(transforms, batch_size), kind)


def open_index(path: str, embedder: Embedder, approximate: bool) -> tuple[Table, Index]:
    """A table, checked to be of the embedder's model, and an index over it.

    Raises:
        ValueError: if it is of another model, or empty of a direction.
        FileNotFoundError: if it is not there.
    """
    table = read_table(Path(path))
    check_fit(embedder, table)
    kind: Kind = "approximate" if approximate else "exact"
    return table, Index(table.vectors, [row.modality for row in table.rows], kind)


def items_of(cfg: DictConfig, run_cfg: DictConfig, embedder: Embedder) -> Items:
    """What ``cfg.input`` holds, in the modalities that the model takes.

    Raises:
        ValueError: if it is neither a folder nor a manifest, or nothing of it can be embedded.
    """
    given = str(cfg.input)
    if not given.endswith(".json"):
        if cfg.modality is not None and cfg.modality not in embedder.transforms:
            known = ", ".join(embedder.transforms)
            raise ValueError(f"modality={cfg.modality}: the model takes {known}")
        return FolderItems(Path(given), cfg.modality, cfg.rate_hz)
    modalities = OmegaConf.to_container(cfg.modalities) if cfg.modalities else None
    modalities = modalities or _as_the_run_reads(given, run_cfg)
    if modalities is None:
        raise ValueError(
            f"the checkpoint's run never read {given}: say what of it to embed, as "
            "modalities='{image: {member: NAME.png}}'"
        )
    source = Source(given, modalities, split=cfg.split)  # type: ignore[arg-type]
    wanted = [name for name in source.modalities if name in embedder.transforms]
    if not wanted:
        raise ValueError(f"the model takes none of {', '.join(source.modalities)}")
    return SourceItems(source, wanted)


def _as_the_run_reads(manifest: str, run_cfg: DictConfig) -> dict[str, Any] | None:
    """The modalities of the run's sources of that manifest, the evaluation's first."""
    found: dict[str, Any] = {}
    evaluated = OmegaConf.select(run_cfg, "evaluation.sets") or {}
    nodes = [entry.get("source") for entry in evaluated.values() if entry]
    nodes += list(run_cfg.data.sources.values())
    for node in nodes:
        if node and _same(str(node.manifest), manifest):
            given: Any = OmegaConf.to_container(node.modalities, resolve=True)
            for name, entry in given.items():
                found.setdefault(str(name), entry)
    return found or None


def _same(a: str, b: str) -> bool:
    return a == b or ("://" not in a and "://" not in b and Path(a).resolve() == Path(b).resolve())


def about_of(checkpoint: str, digest: str, kind: str, given: str, dim: int) -> dict[str, Any]:
    """What a table tells of itself."""
    about = {"checkpoint": Path(checkpoint).name, "weights": digest, "kind": kind}
    return json.loads(json.dumps({**about, "input": given, "embed_dim": dim}))  # type: ignore[no-any-return]
