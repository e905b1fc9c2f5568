"""A search page, and JSON endpoints beside it: multimodal serve checkpoint=A index=B [--api]."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from multimodal.cli.main import run
from multimodal.core.extras import extra_needed
from multimodal.core.process.exits import refused


def serve(cfg: DictConfig) -> None:
    """Serves the page until it is interrupted."""
    with extra_needed("serve", "the search page"):
        from multimodal.inference.search.server import LIMITS, make_app
        from multimodal.inference.search.serving import Server, listen
        from multimodal.inference.service.api import Service
        from multimodal.inference.service.batching import Batching
    from multimodal.config import named_by
    from multimodal.inference.checkpoint.load import load_model
    from multimodal.inference.checkpoint.locate import checkpoint_at
    from multimodal.inference.load import embedder_of
    from multimodal.inference.search.index import open_index

    with refused("serve"):
        packages, named = cfg.allowed_packages, named_by(cfg)
        checkpoint = checkpoint_at(cfg.checkpoint)
        model, run_cfg = load_model(checkpoint, packages, cfg.weights, addresses=named)
        embedder = embedder_of(model, run_cfg, cfg.device).at(cfg.dim)
        embedder.need_pooled("serve")
        if cfg.onnx is not None:
            from multimodal.inference.service.engine import OnnxEmbedder

            embedder = OnnxEmbedder(embedder, Path(cfg.onnx).expanduser())
        table, index, embedder = open_index(cfg.index, embedder, cfg.approximate, cfg.quantize)
        batching = Batching(**cfg.batching)
    routes = []
    if cfg.api:
        service = Service(embedder, table, index, cfg.title, LIMITS, batching, cfg.rate_hz)
        routes = service.routes()
    limits = (cfg.allowed_hosts, cfg.max_upload_mb << 20, cfg.rate_hz)
    app = make_app(embedder, table, index, cfg.title, *limits, routes)
    listening = listen(cfg.host, cfg.port)
    address, port = listening.getsockname()[:2]
    beside = f"; endpoints: http://{address}:{port}/docs" if cfg.api else ""
    print(f"searching {len(table.rows)} rows at http://{address}:{port}{beside}", flush=True)
    Server(app).run(sockets=[listening])


def command() -> None:
    """`multimodal serve` and `python scripts/serve.py`."""
    sys.argv[1:] = ["api=true" if word == "--api" else word for word in sys.argv[1:]]
    run("serve", serve, texts=("title",), paths=("checkpoint", "index", "onnx"))
