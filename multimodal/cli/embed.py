"""A table of embeddings: multimodal embed checkpoint=PATH input=PATH output=PATH."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from multimodal.cli.main import run
from multimodal.core.process.exits import refused


def embed(cfg: DictConfig) -> None:
    """Embeds ``cfg.input`` into ``cfg.output``; resumes an interrupted run."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from multimodal.config import named_by
    from multimodal.inference.checkpoint import store
    from multimodal.inference.checkpoint.load import load_model
    from multimodal.inference.checkpoint.locate import checkpoint_at
    from multimodal.inference.load import embedder_of
    from multimodal.inference.search.builder import build_table
    from multimodal.inference.search.items import items_of
    from multimodal.inference.search.table import about_of

    with refused("embed"):
        packages, named = cfg.allowed_packages, named_by(cfg)
        checkpoint = checkpoint_at(cfg.checkpoint)
        model, run_cfg = load_model(checkpoint, packages, cfg.weights, addresses=named)
        embedder = embedder_of(model, run_cfg, cfg.device, cfg.batch_size, cfg.kind)
        embedder = embedder.at(cfg.dim)
        items = items_of(cfg, run_cfg, embedder)
        digest = store.digest(checkpoint)
        digest += f":{cfg.weights}" if cfg.weights else ""
        about = about_of(str(checkpoint), digest, embedder, str(cfg.input))
        columns = ("embedding", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        hidden = not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
            task = progress.add_task("", total=len(items))
            rows, left_out = build_table(
                embedder, items, Path(cfg.output), about, cfg.previews,
                lambda done: progress.advance(task, done),
            )  # fmt: skip
    note = f"; {left_out} items left out, see above" if left_out else ""
    what = "inputs, tokens" if model.similarity.per_token else "embeddings"
    print(f"{rows} {what} of {embedder.embed_dim} numbers: {cfg.output}{note}")


def command() -> None:
    """`multimodal embed` and `python scripts/embed.py`."""
    run("embed", embed, paths=("checkpoint", "input", "output"))
