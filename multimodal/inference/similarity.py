"""How well the two sides of each sample match, according to a trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from multimodal.config import build
from multimodal.data.loading.evaluation_loader import EvaluationLoader
from multimodal.data.settings import EvaluationData, LoaderSettings
from multimodal.data.shards.manifest import load_manifest
from multimodal.data.source import Source
from multimodal.models.towers import EmbeddingModel


@torch.no_grad()
def pair_similarities(
    model: EmbeddingModel,
    cfg: DictConfig,
    manifest: Path,
    modalities: dict[str, dict[str, Any]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """The similarity of the two sides of every sample, by key: the cosine, or the model's own.

    Where a sample keeps several captions it is their mean: training draws each of them as often.

    Args:
        model: has a tower for both modalities.
        cfg: the model's run; its transforms are used.
        manifest: of the samples, all of whose splits are read.
        modalities: two, each with the member that holds it, as ``Source`` takes them.
        progress: called with the number of finished samples and their total.

    Raises:
        ValueError: if there are not two modalities, or one has no tower or transform.
    """
    if len(modalities) != 2:
        raise ValueError(f"a pair has two modalities, given {', '.join(modalities)}")
    for name in modalities:
        model.tower(name)
    compare = model.similarity.between(*modalities)
    transforms = build(cfg, "data", "transforms", convert="all")
    data = EvaluationData(transforms, loading=LoaderSettings(max_bad_fraction=1.0))
    device = next(model.parameters()).device
    by_key: dict[str, list[float]] = {}
    splits = load_manifest(manifest).splits
    total = sum(table.num_samples for table in splits.values())
    done = 0
    for split in splits:
        source = Source(str(manifest), modalities, split)
        loader = EvaluationLoader(source, data)
        for batch in loader:
            one, two = (
                model.embed(name, value, batch.masks.get(name))
                for name, value in batch.to(device).inputs.items()
            )
            similarities = compare.paired(one, two).tolist()
            for key, similarity in zip(batch.keys, similarities, strict=True):
                by_key.setdefault(key, []).append(similarity)
            done += int((batch.repeats == 0).sum())
            progress(done, total)
    return {key: sum(cosines) / len(cosines) for key, cosines in by_key.items()}


def histogram(similarities: Iterable[float], bins: int = 20) -> dict[str, Any]:
    """Counts of cosines in equal steps from -1 to 1, and their mean."""
    values = np.array(list(similarities))
    counts, edges = np.histogram(values, bins, (-1, 1))
    return {
        "mean": float(values.mean()),
        "edges": [round(edge, 4) for edge in edges.tolist()],
        "counts": counts.tolist(),
    }
