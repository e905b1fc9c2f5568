"""A checkpoint, ready to embed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from multimodal.config import build
from multimodal.data.settings import EvaluationData
from multimodal.inference.checkpoint.load import load_model
from multimodal.inference.embedder import Embedder
from multimodal.models.towers import EmbeddingKind, EmbeddingModel


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


def load_embedder(
    path: str | Path,
    device: str | None = None,
    allowed_packages: Sequence[str] = (),
    batch_size: int = 64,
    kind: EmbeddingKind = "normalized",
) -> Embedder:
    """The model of a checkpoint with the transforms that feed it: `multimodal.load`.

    Args:
        path: of the checkpoint.
        device: to embed on; None: a GPU where there is one.
        allowed_packages: of the caller's own, that the checkpoint's towers may come from.
        batch_size: inputs embedded at once.
        kind: of the embeddings, see `Embedder`.

    Raises:
        CheckpointError: if the checkpoint cannot be used, see `load_model`.
        ConfigError: if its configuration may not be built.
    """
    model, cfg = load_model(path, allowed_packages)
    return embedder_of(model, cfg, device, batch_size, kind)
