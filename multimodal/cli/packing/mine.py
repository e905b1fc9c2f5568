"""Mined negatives: multimodal mine checkpoint=PATH input=MANIFEST output=PATH.npz."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import DictConfig

from multimodal.cli.main import run
from multimodal.core.process.exits import refused

if TYPE_CHECKING:
    from multimodal.data.negatives.table import NegativeTable
    from multimodal.data.source import Source
    from multimodal.inference.embedder import Embedder
    from multimodal.inference.search.mining import MiningOptions


def mine(cfg: DictConfig) -> None:
    """Embeds ``cfg.input`` and writes the hard negatives of its samples to ``cfg.output``."""
    from multimodal.config import named_by
    from multimodal.inference.checkpoint import store
    from multimodal.inference.checkpoint.load import load_model
    from multimodal.inference.checkpoint.locate import checkpoint_at
    from multimodal.inference.load import embedder_of
    from multimodal.inference.search.items import source_of
    from multimodal.inference.search.mining import MiningOptions

    with refused("mine"):
        options = MiningOptions(
            cfg.count, cfg.first, cfg.last, cfg.share, cfg.margin,
            "approximate" if cfg.approximate else "exact",
        )  # fmt: skip
        output = Path(cfg.output)
        if output.suffix != ".npz":
            raise ValueError(f"output={output}: a table of negatives ends in .npz")
        checkpoint = checkpoint_at(cfg.checkpoint)
        named = named_by(cfg)
        model, run_cfg = load_model(checkpoint, cfg.allowed_packages, cfg.weights, addresses=named)
        embedder = embedder_of(model, run_cfg, cfg.device, cfg.batch_size)
        embedder.need_pooled("mine")
        source = source_of(cfg, run_cfg)
        for name in (cfg.anchor, cfg.other):
            if name not in source.modalities or embedder.missing([name]):
                raise ValueError(
                    f"{name}: expected a modality of the samples ({', '.join(source.modalities)}) "
                    f"that the model embeds ({', '.join(model.towers)})"
                )
        mined = _mined(cfg, embedder, source, options, store.digest(checkpoint))
        mined.save(output)
    counts = (mined.negatives >= 0).sum(axis=1)
    mean = mined.similarities[mined.negatives >= 0].mean() if counts.any() else np.nan
    print(
        f"{counts.sum()} negatives of {len(counts)} samples ({(counts == 0).sum()} have none), of "
        f"mean similarity {mean:.3f}; their positives {mined.positives.mean():.3f}: {output}"
    )


def _mined(
    cfg: DictConfig, embedder: Embedder, source: Source, options: MiningOptions, digest: str
) -> NegativeTable:
    """The table of the negatives of a source's samples."""
    from multimodal.data.negatives.keys import encoded
    from multimodal.data.negatives.table import NegativeTable
    from multimodal.inference.search.mining import mine as find

    rows = embedder.source(source, [cfg.anchor, cfg.other]).samples()
    anchors, candidates = (
        rows.embeddings[name].float().numpy() for name in (cfg.anchor, cfg.other)
    )
    items = rows.items[cfg.other].numpy()
    negatives = find(anchors, candidates, rows.keys.numpy(), items, options)
    keys = source.keys()
    about = {
        "checkpoint": digest,
        "input": str(cfg.input),
        "split": cfg.split,
        "anchor": cfg.anchor,
        "other": cfg.other,
        "options": asdict(options),
    }
    own_keys = encoded([keys[place] for place in rows.indices.tolist()])
    return NegativeTable(
        own_keys, negatives.negatives, negatives.similarities, negatives.positives, about
    )


def command() -> None:
    """`multimodal mine`."""
    run("mine", mine, paths=("checkpoint", "input", "output"))
