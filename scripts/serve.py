"""A search page: python scripts/serve.py checkpoint=PATH index=PATH."""

from __future__ import annotations

from omegaconf import DictConfig

from multimodal.cli import run
from multimodal.core.exits import refused
from multimodal.core.extras import extra_needed


def serve(cfg: DictConfig) -> None:
    """Serves the page until it is interrupted."""
    with extra_needed("serve", "the search page"):
        from multimodal.search.server import make_app
        from multimodal.search.serving import Server, listen
    from multimodal.config import named_by
    from multimodal.search.setup import embedder_of, open_index
    from multimodal.training.build import load_model

    with refused("serve"):
        packages, named = cfg.allowed_packages, named_by(cfg)
        model, run_cfg = load_model(cfg.checkpoint, packages, cfg.weights, addresses=named)
        embedder = embedder_of(model, run_cfg, cfg.device)
        table, index = open_index(cfg.index, embedder, cfg.approximate)
    app = make_app(
        embedder, table, index, cfg.title, cfg.allowed_hosts, cfg.max_upload_mb << 20, cfg.rate_hz
    )
    listening = listen(cfg.host, cfg.port)
    address, port = listening.getsockname()[:2]
    print(f"searching {len(table.rows)} rows at http://{address}:{port}", flush=True)
    Server(app).run(sockets=[listening])


if __name__ == "__main__":
    run("serve", serve)
