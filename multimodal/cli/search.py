"""Searches a table: multimodal search checkpoint=PATH index=PATH query=WORDS."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from multimodal.cli.main import run
from multimodal.core.process.exits import refused


def search(cfg: DictConfig) -> None:
    """Prints the rows of ``cfg.index`` that are nearest to ``cfg.query``."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from multimodal.config import named_by
    from multimodal.inference.checkpoint.load import load_model
    from multimodal.inference.checkpoint.locate import checkpoint_at
    from multimodal.inference.load import embedder_of
    from multimodal.inference.search import query
    from multimodal.inference.search.index import open_index

    with refused("search"):
        packages, named = cfg.allowed_packages, named_by(cfg)
        checkpoint = checkpoint_at(cfg.checkpoint)
        model, run_cfg = load_model(checkpoint, packages, cfg.weights, addresses=named)
        embedder = embedder_of(model, run_cfg, cfg.device)
        table, index = open_index(cfg.index, embedder, cfg.approximate)
        if cfg.modality is not None and cfg.modality not in embedder.transforms:
            known = ", ".join(embedder.transforms)
            raise ValueError(f"modality={cfg.modality}: the model takes {known}")
        terms = query.parse(_plain(cfg.query), cfg.modality, cfg.rate_hz)
        hits = index.search(query.embed(embedder, terms), cfg.k)
    shown = Table(box=box.SIMPLE)
    for name in ("modality", "cosine", "name", "key"):
        shown.add_column(name, justify="right" if name == "cosine" else "left")
    for modality, nearest in hits.items():
        for row, score in nearest:
            shown.add_row(modality, f"{score:.3f}", table.rows[row].name, table.rows[row].key)
        shown.add_section()
    Console().print(shown)


def _plain(asked: Any) -> Any:
    is_node = isinstance(asked, DictConfig | ListConfig)
    return OmegaConf.to_container(asked, resolve=True) if is_node else asked


def command() -> None:
    """`multimodal search` and `python scripts/search.py`."""
    run("search", search, texts=("query",), paths=("checkpoint", "index"))
