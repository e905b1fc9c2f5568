# python scripts/draw_negatives.py CHECKPOINT
"""Draws what each strategy picks from a small matrix of similarities of a trained model."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from multimodal.core.files import write_bytes
from multimodal.data.loading.evaluation_loader import EvaluationLoader
from multimodal.data.settings import EvaluationData
from multimodal.inference.checkpoint.load import load_model
from multimodal.objectives.interfaces import Context, Negatives
from multimodal.objectives.negatives.reweighting import Debiased, Reweighted
from multimodal.objectives.negatives.selection import (
    DistanceWeighted,
    Filtered,
    Hard,
    InBatch,
    Random,
    SemiHard,
)
from multimodal.training.build import build_data

SCALE = 1 / 0.07
STRATEGIES: dict[str, Negatives] = {
    "in_batch": InBatch(),
    "random, k=3": Random(k=3),
    "hard, k=3": Hard(k=3),
    "hard, k=3, skip=1": Hard(k=3, skip=1),
    "semi_hard, margin=0.2": SemiHard(margin=0.2),
    "distance_weighted, k=3": DistanceWeighted(k=3),
    "reweighted, beta=0.5": Reweighted(beta=0.5),
    "debiased, tau_plus=0.02": Debiased(tau_plus=0.02),
    "filtered, threshold=0.8": Filtered(threshold=0.8, then=InBatch()),
}


def main() -> None:
    """Embeds some emoji and their names, and draws a panel per strategy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="of a run that trains image and text on emoji")
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path("docs/negatives.png"))
    parser.add_argument("--allowed-packages", nargs="+", default=[], help="that it builds from")
    parser.add_argument("--allowed-addresses", nargs="+", default=[], help="that it may open")
    arguments = parser.parse_args()
    trusted = (arguments.allowed_packages, arguments.allowed_addresses)
    similarities, names = similarities_of(arguments.checkpoint, arguments.samples, *trusted)
    draw(similarities, names, arguments.output)


@torch.no_grad()
def similarities_of(
    checkpoint: str, count: int, packages: Sequence[str] = (), addresses: Sequence[str] = ()
) -> tuple[Tensor, list[str]]:
    """Cosines ``[count, count]`` of the first samples to train on, and what they are called."""
    model, cfg = load_model(checkpoint, packages, addresses=addresses)
    data = build_data(cfg)
    loader = EvaluationLoader(
        data.sources["emoji"], EvaluationData(data.transforms, count), ["image", "text"]
    )
    batch = next(iter(loader))
    images, texts = (
        model.embed(name, batch.inputs[name], batch.masks.get(name)) for name in ("image", "text")
    )
    return images @ texts.T, [metadata["name"] for metadata in batch.metadata]


def draw(similarities: Tensor, names: list[str], path: Path) -> None:
    """Similarities first, then each strategy's weights: a dot's area is a negative's weight."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    ids = torch.arange(len(similarities))
    positives = torch.eye(len(similarities), dtype=torch.bool)
    context = Context(0, 0, "image_text", "image->text", torch.tensor(SCALE), embed_dim=256)
    lowest = float(similarities.min())
    figure, axes = pyplot.subplots(2, 5, figsize=(15, 6.2), layout="constrained")
    for panel, (title, strategy) in zip(
        axes.flat, {"similarities": None, **STRATEGIES}.items(), strict=True
    ):
        faint = 1.0 if strategy is None else 0.5  # where there are dots
        shades = panel.imshow(similarities, cmap="Greys", vmin=lowest, vmax=1.0, alpha=faint)
        panel.scatter(ids, ids, marker="s", s=60, facecolors="none", edgecolors="tab:green")
        panel.set_title(title, fontsize=10)
        panel.set_xticks([])
        panel.set_yticks([])
        if panel in axes[:, 0]:
            panel.set_yticks(ids, names, fontsize=8)
        if strategy is None:
            figure.colorbar(shades, ax=axes[:, -1], label="cosine", shrink=0.6)
            continue
        weights = strategy(similarities, positives, ~positives, ids, ids, context).exp()
        rows, columns = ((weights > 0) & ~positives).nonzero(as_tuple=True)
        panel.scatter(columns, rows, s=22 * weights[rows, columns], color="tab:red", linewidths=0)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:], dpi=100, metadata={"Software": None})
    write_bytes(path, picture.getvalue())


if __name__ == "__main__":
    main()
