"""What a pair's similarities look like, measured cheaply and beside the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from multimodal.objectives.items import Items, matches

MEASURED_ROWS = 256  # anchors per rank and step; enough for a curve, and little beside the loss


@torch.no_grad()
def similarity_metrics(
    anchors: Items, candidates: Items, keys_are_positives: bool = True
) -> dict[str, Tensor]:
    """Means over the first `MEASURED_ROWS` anchors, against all of their candidates.

    Args:
        anchors: A items, may be none.
        candidates: C items.
        keys_are_positives: see `matches`.

    Returns:
        accuracy: share of anchors whose most similar positive is above every negative;
        positive_similarity: mean cosine of an anchor's positives;
        hardest_negative_similarity: cosine of the most similar negative, over anchors with one.
        Scalars on the device; zeros without anchors.
    """
    anchors = anchors[slice(0, MEASURED_ROWS)]
    similarities_AC = anchors.embeddings @ candidates.embeddings.T
    positives, negatives = matches(anchors, candidates, keys_are_positives)
    lowest = torch.finfo(similarities_AC.dtype).min
    positive_A = similarities_AC.masked_fill(~positives, lowest).amax(dim=1)
    negative_A = similarities_AC.masked_fill(~negatives, lowest).amax(dim=1)
    return {
        "accuracy": (positive_A > negative_A).sum() / max(1, len(anchors)),
        "positive_similarity": _mean(similarities_AC, positives),
        "hardest_negative_similarity": _mean(negative_A, negatives.any(dim=1)),
    }


def _mean(values: Tensor, where: Tensor) -> Tensor:
    # not values[where], whose size the host would have to wait for
    return values.masked_fill(~where, 0).sum() / where.sum().clamp(min=1)
