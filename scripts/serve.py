"""A search page: python scripts/serve.py checkpoint=PATH index=PATH."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from multimodal.cli import run


def serve(cfg: DictConfig) -> None:
    """Serves the page until it is interrupted."""
    try:
        from multimodal.search.server import make_app
        from multimodal.search.serving import Server, listen
    except ModuleNotFoundError as error:
        sys.exit(f'serve: {error}; the page needs pip install "multimodal[serve]"')
    from multimodal.config import named_by
    from multimodal.search.setup import embedder_of, open_index
    from multimodal.training.build import load_model

    try:
        packages, named = cfg.allowed_packages, named_by(cfg)
        model, run_cfg = load_model(cfg.checkpoint, packages, cfg.weights, addresses=named)
        embedder = embedder_of(model, run_cfg, cfg.device)
        table, index = open_index(cfg.index, embedder, cfg.approximate)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        sys.exit(f"serve: {error}")
    app = make_app(
        embedder, table, index, cfg.title, cfg.allowed_hosts, cfg.max_upload_mb << 20, cfg.rate_hz
    )
    listening = listen(cfg.host, cfg.port)
    address, port = listening.getsockname()[:2]
    print(f"searching {len(table.rows)} rows at http://{address}:{port}", flush=True)
    Server(app).run(sockets=[listening])


if __name__ == "__main__":
    run("serve", serve)
