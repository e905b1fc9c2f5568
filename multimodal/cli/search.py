"""Searches a table: multimodal search checkpoint=PATH index=PATH query=WORDS."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from multimodal.cli.main import run
from multimodal.core.process.exits import refused

if TYPE_CHECKING:
    from multimodal.inference.embedder import Embedder


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
    from multimodal.inference.search.tokens import open_token_index, token_terms

    with refused("search"):
        packages, named = cfg.allowed_packages, named_by(cfg)
        checkpoint = checkpoint_at(cfg.checkpoint)
        model, run_cfg = load_model(checkpoint, packages, cfg.weights, addresses=named)
        embedder = embedder_of(model, run_cfg, cfg.device).at(cfg.dim)
        with _table(cfg, run_cfg, embedder) as path:
            how = (path, embedder, cfg.approximate, cfg.quantize)
            late = model.similarity.per_token
            index: Any
            table, index, embedder = open_token_index(*how) if late else open_index(*how)
        if cfg.modality is not None and cfg.modality not in embedder.transforms:
            known = ", ".join(embedder.transforms)
            raise ValueError(f"modality={cfg.modality}: the model takes {known}")
        terms = query.parse(_plain(cfg.query), cfg.modality, cfg.rate_hz)
        if late and cfg.joint:
            raise ValueError("joint=true: a model of late interaction compares each term by itself")
        asked: Any = (
            token_terms(embedder, terms) if late else query.embed(embedder, terms, joint=cfg.joint)
        )
        hits = index.search(asked, cfg.k)
    shown = Table(box=box.SIMPLE)
    for name in ("modality", "similarity" if late else "cosine", "name", "key"):
        shown.add_column(name, justify="right" if name in ("similarity", "cosine") else "left")
    for modality, nearest in hits.items():
        for row, score in nearest:
            shown.add_row(modality, f"{score:.3f}", table.rows[row].name, table.rows[row].key)
        shown.add_section()
    Console().print(shown)


@contextmanager
def _table(cfg: DictConfig, run_cfg: DictConfig, embedder: Embedder) -> Iterator[str]:
    """The table ``cfg.index``, or one that is made of a folder or a manifest for this search."""
    given = str(cfg.index)
    if not given.endswith(".json") and not Path(given).is_dir():
        yield given
        return
    from multimodal.inference.search.builder import build_table
    from multimodal.inference.search.items import items_of
    from multimodal.inference.search.table import about_of

    read = {"input": given, "split": cfg.split, "modalities": cfg.modalities}
    items = items_of(
        OmegaConf.create({**read, "modality": None, "rate_hz": None}), run_cfg, embedder
    )
    about = about_of("", "", embedder, given)
    print(f"embedding the {len(items)} items of {given}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.parquet"
        build_table(embedder, items, path, about, previews=False)
        yield str(path)


def _plain(asked: Any) -> Any:
    is_node = isinstance(asked, DictConfig | ListConfig)
    return OmegaConf.to_container(asked, resolve=True) if is_node else asked


def command() -> None:
    """`multimodal search` and `python scripts/search.py`."""
    run("search", search, texts=("query",), paths=("checkpoint", "index"))
