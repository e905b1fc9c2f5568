"""Embeddings in two dimensions that preserve neighbourhoods (t-SNE)."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

ITERATIONS = 500


def tsne_points(embeddings: Tensor, seed: int = 0) -> Tensor:
    """Points for a map: van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008.

    Args:
        embeddings: ``[n, D]``, of unit norm; at least 3.
        seed: of the descent.

    Returns:
        ``[n, 2]`` float32 in [0, 1], the aspect of the layout kept; the same for the same input.

    Raises:
        ValueError: if given fewer than three embeddings.
    """
    count = len(embeddings)
    if count < 3:
        raise ValueError(f"a map needs at least 3 embeddings; got {count}")
    from sklearn.decomposition import PCA  # takes as long to import as torch
    from sklearn.manifold import TSNE

    vectors = embeddings.double().numpy()
    start = PCA(2, svd_solver="full").fit_transform(vectors)
    spread = start.std(axis=0).max()
    if spread < 1e-9:  # all at one point
        return torch.full((count, 2), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about empty clusters of tiny sets
        points = TSNE(
            perplexity=min(30.0, (count - 1) / 3),
            init=(1e-4 * start / spread).astype(np.float32),
            max_iter=ITERATIONS,
            random_state=seed,
            n_jobs=1,
        ).fit_transform(vectors.astype(np.float32))
    points = points - points.min(axis=0)
    points = points / max(float(points.max()), 1e-9)
    centred = points + (1 - points.max(axis=0)) / 2
    return torch.from_numpy(centred.astype(np.float32))
